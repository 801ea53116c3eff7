//! Other people's clients against a member: etcd's own Go client, where Go is installed.
//!
//! `clients/README.md` lists the others, which need more than a build of this workspace. Nothing
//! here may fail for want of a tool: it says loudly what it skipped.

use std::path::Path;
use std::process::Command;

use crate::harness::{DRIVERS, Setup, is_available};

/// The Go client as a program below `dir`, if it can be built here.
fn go_client(dir: &Path) -> Option<std::path::PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("SKIPPED: Go is not here; the Go client is not tested");
        return None;
    }
    let program = dir.join("client");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/go"))
        .output()
        .expect("Go is here");
    if !built.status.success() {
        let error = String::from_utf8_lossy(&built.stderr);
        // Without a network the modules may be missing; anything else is an error of ours.
        assert!(is_missing_module(&error), "the Go client does not build:\n{error}");
        eprintln!("SKIPPED: the Go client's modules cannot be had:\n{error}");
        return None;
    }
    Some(program)
}

fn is_missing_module(error: &str) -> bool {
    ["dial tcp", "module lookup disabled", "proxyconnect", "i/o timeout", "TLS handshake"]
        .iter()
        .any(|text| error.contains(text))
}

#[test]
fn the_go_client_does_everything_it_does_with_etcd() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = go_client(dir.path()) else { return };
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        let output = Command::new(&program).arg(setup.endpoint()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{driver}: {error}");
        assert_eq!(output.stdout, b"ok\n", "{driver}: {error}");
    }
}
