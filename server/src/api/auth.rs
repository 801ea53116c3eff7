//! The Auth service: users, roles and logins.
//!
//! What changes users and roles is proposed as it comes, once passwords in it are hashed. What only
//! asks reads at a linearizable point, where etcd has the question applied like a write; that tells
//! the same. A login is a small machine: it reads the user's hash at a linearizable point, has the
//! password compared on a thread for that, proposes the login, and begins again if users or roles
//! have changed meanwhile (etcd `v3_server.go`). No password may be logged, or put into an entry.

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Outcome, Refusal, decode};
use super::identity::author;
use super::pending::{CallKind, PendingCall, To};
use crate::auth::{passwords, tokens};
use crate::background::passwords::{Outcome as Done, Task};
use crate::channel::{Reply, Slot};
use crate::entry::field;

/// A question about users and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthQuestion {
    User(String),
    Users,
    Role(String),
    Roles,
}

/// What comes with a password.
pub(super) enum Credentials {
    Login {
        name: String,
        password: Bytes,
        /// The revision of the auth store at which the password was looked at.
        revision: u64,
    },
    /// The password is taken out of the request.
    UserAdd(pb::AuthUserAddRequest, Bytes),
    ChangePassword(pb::AuthUserChangePasswordRequest, Bytes),
}

impl Cx<'_> {
    pub(super) fn auth_status(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::AuthStatusRequest>(message.into_bytes())?;
        self.take_ticket(call, CallKind::AtPoint(answer_status))
    }

    pub(super) fn user_get(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::AuthUserGetRequest = decode(message.into_bytes())?;
        self.ask_auth(call, AuthQuestion::User(request.name))
    }

    pub(super) fn user_list(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::AuthUserListRequest>(message.into_bytes())?;
        self.ask_auth(call, AuthQuestion::Users)
    }

    pub(super) fn role_get(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::AuthRoleGetRequest = decode(message.into_bytes())?;
        self.ask_auth(call, AuthQuestion::Role(request.role))
    }

    pub(super) fn role_list(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::AuthRoleListRequest>(message.into_bytes())?;
        self.ask_auth(call, AuthQuestion::Roles)
    }

    fn ask_auth(&mut self, call: Call, question: AuthQuestion) -> Outcome {
        self.take_ticket(call, CallKind::AuthQuestion(Box::new(question)))
    }

    pub(super) fn answer_auth_question(&mut self, call: &Call, asked: &AuthQuestion) -> Outcome {
        let asker = self.api.asker(&call.caller)?;
        let (author, view) = (author(asker.as_ref()), self.api.reads.view());
        let auth = &view.auth;
        let header = Some(self.api.shared.header(view.store.revision.0).to_pb());
        let answer = match asked {
            AuthQuestion::User(name) => {
                auth.admit_user_get(author, name)?;
                let roles = auth.user(name)?.roles.clone();
                pb::AuthUserGetResponse { header, roles }.encode_to_vec()
            }
            AuthQuestion::Users => {
                auth.admit_admin(author)?;
                pb::AuthUserListResponse { header, users: auth.user_names() }.encode_to_vec()
            }
            AuthQuestion::Role(role) => {
                auth.admit_role_get(author, role)?;
                let perm = auth.permissions(role)?;
                pb::AuthRoleGetResponse { header, perm }.encode_to_vec()
            }
            AuthQuestion::Roles => {
                auth.admit_admin(author)?;
                pb::AuthRoleListResponse { header, roles: auth.role_names() }.encode_to_vec()
            }
        };
        self.out.reply(call.id, &answer);
        Ok(())
    }

    pub(super) fn authenticate(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::AuthenticateRequest = decode(message.into_bytes())?;
        let (name, password) = (request.name, request.password.into());
        self.wait_with(call, Credentials::Login { name, password, revision: 0 })
    }

    pub(super) fn user_add(&mut self, call: Call, message: Message) -> Outcome {
        let mut request: pb::AuthUserAddRequest = decode(message.into_bytes())?;
        let password: Bytes = std::mem::take(&mut request.password).into();
        if request.options.is_some_and(|options| options.no_password) {
            return self.propose(call, field::AUTH_USER_ADD, &request.encode_to_vec());
        }
        passwords::check(&password).map_err(Refusal::Status)?;
        self.wait_with(call, Credentials::UserAdd(request, password))
    }

    pub(super) fn change_password(&mut self, call: Call, message: Message) -> Outcome {
        let mut request: pb::AuthUserChangePasswordRequest = decode(message.into_bytes())?;
        let password: Bytes = std::mem::take(&mut request.password).into();
        if password.is_empty() {
            let field = field::AUTH_USER_CHANGE_PASSWORD;
            return self.propose(call, field, &request.encode_to_vec());
        }
        passwords::check(&password).map_err(Refusal::Status)?;
        self.wait_with(call, Credentials::ChangePassword(request, password))
    }

    fn wait_with(&mut self, call: Call, credentials: Credentials) -> Outcome {
        self.take_ticket(call, CallKind::Credentials(Box::new(credentials)))
    }

    /// At the point of a request with a password: the password is given to a thread, if whoever
    /// asks may have that.
    pub(super) fn look_at_credentials(
        &mut self,
        call: Call,
        mut credentials: Box<Credentials>,
    ) -> Outcome {
        let task = match &mut *credentials {
            Credentials::Login { name, password, revision } => {
                let auth = self.api.auth();
                let hash = Bytes::copy_from_slice(auth.password_of(name).map_err(Refusal::Status)?);
                *revision = auth.revision();
                Task::Compare { password: password.clone(), hash }
            }
            Credentials::UserAdd(_, password) | Credentials::ChangePassword(_, password) => {
                // etcd asks only when it applies it, but then anybody could have it hash.
                self.api.admit_admin(&call.caller)?;
                let (mut salt, password) = ([0; 16], std::mem::take(password));
                self.api.passwords.draw(&mut salt);
                Task::Hash { password, cost: self.api.shared.config.auth.bcrypt_cost, salt }
            }
        };
        let pending = self.api.pending_call(call, CallKind::Password(credentials));
        let deadline_ms = pending.deadline_ms;
        let slot = self.api.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        if self.api.passwords.start(slot, task, deadline_ms).is_err() {
            self.api.pending.remove(slot);
            return Err(EtcdError::TooManyRequests.into());
        }
        Err(Refusal::Waiting)
    }

    /// Goes on with the requests whose passwords were hashed or compared.
    pub(super) fn take_passwords(&mut self) {
        while let Some((slot, outcome)) = self.api.passwords.take() {
            self.finish_password(slot, outcome);
        }
    }

    fn finish_password(&mut self, slot: Slot, outcome: Done) {
        let Some(PendingCall { to: To::Call(mut call), kind, deadline_ms, .. }) =
            self.api.pending.remove(slot)
        else {
            return;
        };
        let CallKind::Password(credentials) = kind else { return };
        call.deadline_ms = Some(deadline_ms);
        let id = call.id;
        let outcome = match (*credentials, outcome) {
            (login @ Credentials::Login { .. }, Done::Compared(true)) => {
                self.propose_login(call, Box::new(login))
            }
            (Credentials::UserAdd(mut request, _), Done::Hashed(Ok(hashed))) => {
                request.hashed_password = hashed;
                self.propose(call, field::AUTH_USER_ADD, &request.encode_to_vec())
            }
            (Credentials::ChangePassword(mut request, _), Done::Hashed(Ok(hashed))) => {
                request.hashed_password = hashed;
                let field = field::AUTH_USER_CHANGE_PASSWORD;
                self.propose(call, field, &request.encode_to_vec())
            }
            (_, Done::Hashed(Err(status))) => Err(Refusal::Status(status)),
            _ => Err(EtcdError::AuthFailed.into()),
        };
        if let Err(Refusal::Status(status)) = outcome {
            self.out.fail(id, &status);
        }
    }

    /// The entry says who logs in, and what the token begins with; it has nobody's permission.
    fn propose_login(&mut self, call: Call, login: Box<Credentials>) -> Outcome {
        let Credentials::Login { name, .. } = &*login else { return Ok(()) };
        let passwords = &mut self.api.passwords;
        let simple_token = match self.api.shared.tokens.simple() {
            Some(_) => tokens::new_prefix(|bytes| passwords.draw(bytes)),
            None => String::new(),
        };
        let name = name.clone();
        let entry = pb::InternalAuthenticateRequest { name, simple_token, ..Default::default() };
        let kind = CallKind::Login(login);
        self.propose_for_nobody(call, kind, field::AUTHENTICATE, &entry.encode_to_vec())
    }

    /// The login is applied. If users or roles have changed since the password was looked at, it
    /// is looked at again.
    pub(super) fn finish_login(&mut self, call: Call, login: Box<Credentials>, reply: Reply) {
        let Credentials::Login { name, revision, .. } = &*login else { return };
        let id = call.id;
        let outcome = if *revision == self.api.auth().revision() {
            self.answer_login(&call, name, *revision, reply)
        } else {
            self.look_at_credentials(call, login)
        };
        if let Err(Refusal::Status(status)) = outcome {
            self.out.fail(id, &status);
        }
    }

    fn answer_login(&mut self, call: &Call, name: &str, revision: u64, reply: Reply) -> Outcome {
        let answer = match reply {
            Reply::Message(answer) => answer,
            Reply::Header { revision: of_store } => {
                let signed = self.api.shared.tokens.sign(name, revision, self.api.unix_s());
                let token = signed.unwrap_or_else(|| Err(EtcdError::AuthFailed.into()));
                let token = token.map_err(Refusal::Status)?;
                let header = Some(self.api.shared.header(of_store).to_pb());
                pb::AuthenticateResponse { header, token }.encode_to_vec()
            }
            _ => return Err(EtcdError::Stopped.into()),
        };
        self.out.reply(call.id, &answer);
        self.api.ended(call, None);
        Ok(())
    }
}

fn answer_status(cx: &mut Cx<'_>, call: &Call) -> Outcome {
    // Whoever shows a token must show a good one.
    cx.api.asker(&call.caller)?;
    let view = cx.api.reads.view();
    let response = pb::AuthStatusResponse {
        header: Some(cx.api.shared.header(view.store.revision.0).to_pb()),
        enabled: view.auth.is_enabled(),
        auth_revision: view.auth.revision(),
    };
    cx.out.reply(call.id, &response.encode_to_vec());
    Ok(())
}
