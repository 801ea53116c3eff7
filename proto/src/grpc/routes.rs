//! The methods a server knows. Built once at start and shared by all connections.

use std::collections::{HashMap, HashSet};

/// A method's number, chosen by the one who builds [`Routes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodId(pub u16);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) method: MethodId,
    pub(super) streaming: bool,
}

/// Paths and their methods.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    by_path: HashMap<Box<[u8]>, u32>,
    services: HashSet<Box<str>>,
}

/// Why no table can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutesError {
    /// Not of the form `/service/method`.
    #[error("malformed method path {0:?}")]
    Malformed(String),
    /// Given twice.
    #[error("method path {0:?} is given twice")]
    Duplicate(String),
}

impl Routes {
    /// Builds the table from (path, number, whether either side streams).
    ///
    /// # Errors
    /// A [`RoutesError`] for paths that no request could mean.
    pub fn new<'a>(
        methods: impl IntoIterator<Item = (&'a str, MethodId, bool)>,
    ) -> Result<Self, RoutesError> {
        let mut table = Routes::default();
        for (path, method, streaming) in methods {
            let Some((service, name)) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/'))
            else {
                return Err(RoutesError::Malformed(path.to_owned()));
            };
            if service.is_empty() || name.is_empty() {
                return Err(RoutesError::Malformed(path.to_owned()));
            }
            let index = table.routes.len() as u32;
            table.routes.push(Route { method, streaming });
            if table.by_path.insert(path.as_bytes().into(), index).is_some() {
                return Err(RoutesError::Duplicate(path.to_owned()));
            }
            table.services.insert(service.into());
        }
        Ok(table)
    }

    pub(super) fn find(&self, path: &[u8]) -> Option<u32> {
        self.by_path.get(path).copied()
    }

    pub(super) fn get(&self, index: u32) -> Option<Route> {
        self.routes.get(index as usize).copied()
    }

    /// grpc-go's text for a path it does not serve.
    pub(super) fn unknown_text(&self, path: &[u8]) -> String {
        let split = std::str::from_utf8(path)
            .ok()
            .and_then(|path| path.strip_prefix('/'))
            .and_then(|path| path.rsplit_once('/'));
        match split {
            None => format!("malformed method name: {}", super::text::go_quote(path)),
            Some((service, method)) if self.services.contains(service) => {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_and_strangers_get_grpc_go_s_texts() {
        let routes = Routes::new([("/a.B/C", MethodId(4), false), ("/a.B/D", MethodId(5), true)]);
        let routes = routes.unwrap();
        let found = routes.find(b"/a.B/D").and_then(|index| routes.get(index));
        assert_eq!(found, Some(Route { method: MethodId(5), streaming: true }));
        assert_eq!(routes.find(b"/a.B/c"), None);
        assert_eq!(routes.unknown_text(b"/a.B/X"), "unknown method X for service a.B");
        assert_eq!(routes.unknown_text(b"/a.X/C"), "unknown service a.X");
        assert_eq!(routes.unknown_text(b"/nothing"), "malformed method name: \"/nothing\"");
    }

    #[test]
    fn malformed_and_doubled_paths_are_refused() {
        for path in ["", "a/b", "/a", "//b", "/a/"] {
            let built = Routes::new([(path, MethodId(0), false)]);
            assert!(matches!(built, Err(RoutesError::Malformed(_))), "{path:?}");
        }
        let twice = Routes::new([("/a/b", MethodId(0), false), ("/a/b", MethodId(1), false)]);
        assert!(matches!(twice, Err(RoutesError::Duplicate(_))));
    }
}
