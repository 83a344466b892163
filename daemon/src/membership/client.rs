//! etcd's JSON gateway over HTTP/1.1, with TLS if so configured. Knows endpoints and a login; what is said is `words`.
//!
//! Invariant: whatever an endpoint sends, no more than `ANSWER_BYTES_MAX` of it is kept.

use std::{
    cell::RefCell,
    error::Error,
    fs::File,
    io::{self, Read},
    path::Path,
    rc::Rc,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request as HttpRequest, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use lapis_config::Endpoint;
use lapis_membership::words::{self, Answer, Failure, FailureKind, Place, Request, Watched};
use lapis_transport::peers::tls::server;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::EtcdOptions;

/// Thousands of hosts in one list are less than a tenth of it.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Longest file with a login.
const LOGIN_BYTES_MAX: u64 = 4096;

type Sender = SendRequest<Full<Bytes>>;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// For one thread, with a `LocalSet`.
#[derive(Clone)]
pub struct Client {
    options: Rc<EtcdOptions>,
    place: Rc<Place>,
    token: Rc<RefCell<Option<String>>>,
    /// A connection that is done with its last request, and its endpoint.
    idle: Rc<RefCell<Option<(usize, Sender)>>>,
}

impl Client {
    pub fn new(options: EtcdOptions, place: Place) -> Self {
        Self { options: Rc::new(options), place: Rc::new(place), token: Rc::default(), idle: Rc::default() }
    }

    pub async fn call(&self, endpoint: usize, request: &Request) -> Result<Answer, Failure> {
        let text = self.post(endpoint, request.path(), &request.body(&self.place)).await?;
        request.answer(&text)
    }

    /// Which etcd it is.
    pub async fn version(&self, endpoint: usize) -> Result<String, Failure> {
        let request = plain(Method::GET, words::VERSION_PATH, Bytes::new());
        let response = self.send(endpoint, request, words::VERSION_PATH).await?;
        words::version(&whole(response, words::VERSION_PATH).await?)
    }

    /// Of what changes after that revision. It is opened once it says so.
    pub async fn watch(&self, endpoint: usize, revision: u64) -> Result<Watch, Failure> {
        let body = words::watch_body(&self.place, revision);
        let response = self.with_login(endpoint, words::WATCH_PATH, &body).await?;
        if response.status() != 200 {
            let status = response.status().as_u16();
            return Err(words::refusal(status, words::WATCH_PATH, &whole_body(response).await?));
        }
        Ok(Watch { body: response.into_body(), read: Vec::new() })
    }

    async fn post(&self, endpoint: usize, path: &'static str, body: &Value) -> Result<Bytes, Failure> {
        whole(self.with_login(endpoint, path, body).await?, path).await
    }

    /// A login is said first where there is one, and again when it is no longer known.
    async fn with_login(
        &self,
        endpoint: usize,
        path: &'static str,
        body: &Value,
    ) -> Result<Response<Incoming>, Failure> {
        let body = Bytes::from(body.to_string());
        for is_last in [false, true] {
            let mut request = plain(Method::POST, path, body.clone());
            if let Some(login) = &self.options.login {
                let token = self.token(endpoint, login).await?;
                let mut value: header::HeaderValue =
                    token.parse().map_err(|_| Failure::away("the token of a login cannot be a header"))?;
                value.set_sensitive(true);
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
            let response = self.send(endpoint, request, path).await?;
            if response.status() == 200 {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let mut failure = words::refusal(status, path, &whole_body(response).await?);
            if failure.kind == FailureKind::NoLogin {
                self.forget_login();
                if self.options.login.is_none() {
                    failure.why.push_str(" (it asks for a login: peers.etcd_login)");
                } else if !is_last {
                    continue;
                }
            }
            return Err(failure);
        }
        unreachable!("the last time returns")
    }

    /// It is said anew before the next request.
    pub fn forget_login(&self) {
        self.token.borrow_mut().take();
    }

    async fn token(&self, endpoint: usize, login: &Path) -> Result<String, Failure> {
        if let Some(token) = self.token.borrow().clone() {
            return Ok(token);
        }
        let (user, password) = read_login(login).map_err(|why| Failure { why, kind: FailureKind::Refused })?;
        let body = Bytes::from(words::login_body(&user, &password).to_string());
        let response = self.send(endpoint, plain(Method::POST, words::LOGIN_PATH, body), words::LOGIN_PATH).await?;
        let token = whole(response, words::LOGIN_PATH).await.and_then(|text| words::login_token(&text));
        let token = token.map_err(|failure| Failure {
            why: format!("the login of user {user:?} ({}): {}", login.display(), failure.why),
            ..failure
        })?;
        *self.token.borrow_mut() = Some(token.clone());
        Ok(token)
    }

    /// On the idle connection, if it takes it, else on a new one.
    async fn send(
        &self,
        endpoint: usize,
        mut request: HttpRequest<Full<Bytes>>,
        path: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let address = &self.options.endpoints[endpoint].address;
        let host = address.parse().map_err(|_| Failure::away(format!("{address} cannot be a header")))?;
        request.headers_mut().insert(header::HOST, host);
        // A watch keeps its connection to itself.
        let is_watch = path == words::WATCH_PATH;
        let idle = self.idle.borrow_mut().take_if(|(of, _)| *of == endpoint && !is_watch);
        if let Some((_, mut sender)) = idle
            && sender.ready().await.is_ok()
            // An idle connection may have been cut in this very moment: nothing is said of etcd by that.
            && let Ok(response) = sender.send_request(request.clone()).await
        {
            *self.idle.borrow_mut() = Some((endpoint, sender));
            return Ok(response);
        }
        let mut sender = self.connect(&self.options.endpoints[endpoint]).await?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| unanswered(&self.options.endpoints[endpoint], path, &error))?;
        if !is_watch {
            *self.idle.borrow_mut() = Some((endpoint, sender));
        }
        Ok(response)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Sender, Failure> {
        let broken = |error: io::Error| Failure::away(format!("no connection: {error}"));
        let stream = TcpStream::connect(&endpoint.address).await.map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let stream: Box<dyn Stream> = match endpoint.is_https {
            false => Box::new(stream),
            true => {
                let config = self.options.tls().map_err(|why| Failure { why, kind: FailureKind::Refused })?;
                let name = ServerName::try_from(endpoint.host().to_owned());
                let name = name.map_err(|_| Failure::away(format!("{} has no name for TLS", endpoint.host())))?;
                let shaken = TlsConnector::from(config).connect(name, stream).await;
                Box::new(shaken.map_err(|error| unshaken(&error))?)
            }
        };
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| Failure::away(format!("no HTTP: {}", causes(&error))))?;
        // It ends when neither the sender nor an answer's body is wanted any more; its errors are theirs.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl EtcdOptions {
    /// From the files as they are now; only for https.
    pub fn tls(&self) -> Result<std::sync::Arc<rustls::ClientConfig>, String> {
        let authority = self.authority.as_ref().ok_or("https:// without peers.etcd_ca")?;
        let identity = self.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        server::config(authority, identity).map_err(|error| format!("TLS to etcd: {error}"))
    }

    /// Whether all files can be used, before anything is begun with them.
    pub fn check_files(&self) -> Result<(), String> {
        if self.endpoints.iter().any(|endpoint| endpoint.is_https) {
            self.tls()?;
        }
        self.login.as_deref().map_or(Ok(()), |login| read_login(login).map(drop))
    }
}

fn read_login(path: &Path) -> Result<(String, String), String> {
    let of = |what: String| format!("{} (peers.etcd_login) {what}", path.display());
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LOGIN_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| of(format!("cannot be read: {error}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() && !line.contains('\n') && text.len() as u64 <= LOGIN_BYTES_MAX => {
            Ok((user.into(), password.into()))
        }
        // Not shown: it may be a password.
        _ => Err(of("is not one line USER:PASSWORD".into())),
    }
}

fn plain(method: Method, path: &'static str, body: Bytes) -> HttpRequest<Full<Bytes>> {
    let builder = HttpRequest::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    builder.body(Full::new(body)).expect("paths and headers are constants")
}

async fn whole(response: Response<Incoming>, path: &str) -> Result<Bytes, Failure> {
    let status = response.status().as_u16();
    let text = whole_body(response).await?;
    if status == 200 { Ok(text) } else { Err(words::refusal(status, path, &text)) }
}

async fn whole_body(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Failure::away(format!("its answer broke off: {}", causes(&*error))))?;
    Ok(body.to_bytes())
}

/// A stream of lines that etcd goes on writing; dropped, it ends.
pub struct Watch {
    body: Incoming,
    read: Vec<u8>,
}

impl Watch {
    /// What comes next; after `Failed` nothing does.
    pub async fn next(&mut self) -> Watched {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return words::watched(&line);
            }
            if self.read.len() > ANSWER_BYTES_MAX {
                return Watched::Failed(Failure::away("a line of the watch has no end"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    return Watched::Failed(Failure::away(format!("the watch broke off: {}", causes(&error))));
                }
                None => return Watched::Failed(Failure::away("the watch was ended by the endpoint")),
            }
        }
    }
}

/// Why there was no answer, with what may be wrong in the configuration.
fn unanswered(endpoint: &Endpoint, path: &str, error: &hyper::Error) -> Failure {
    let refusal = chain(error).find_map(|error| error.downcast_ref::<io::Error>().and_then(of_tls));
    let hint = match refusal {
        Some(refusal) => hint(refusal),
        None if !endpoint.is_https && (error.is_incomplete_message() || error.is_parse()) => {
            " (does it want https://?)"
        }
        None => "",
    };
    Failure::away(format!("no answer at {path}: {}{hint}", causes(error)))
}

fn unshaken(error: &io::Error) -> Failure {
    Failure::away(format!("no TLS with it: {error}{}", of_tls(error).map_or("", hint)))
}

fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn hint(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) => " (is peers.etcd_ca its authority, and is it called so?)",
        rustls::Error::InvalidMessage(_) => " (does it speak TLS?)",
        rustls::Error::AlertReceived(_) => " (does it ask for peers.etcd_certificate, or speak no TLS 1.3?)",
        _ => "",
    }
}

/// hyper says the reason only as the cause of its error.
fn causes(error: &(dyn Error + 'static)) -> String {
    chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
