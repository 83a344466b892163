//! The thread that runs the machine: does what it asks, says what came of it, and tells the engine of members.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use lapis_config::{Member, Time};
use lapis_membership::{
    KnownBy,
    machine::{Ask, Membership, MembershipOptions, Note},
    words::{Answer, Failure, FailureKind, Place, Request, Watched},
};
use tokio::{
    sync::{mpsc as tasks, oneshot},
    task::{AbortHandle, LocalSet, spawn_local},
    time::timeout,
};

use super::{EtcdOptions, client::Client};

/// What was heard and not yet told to the machine.
const HEARD_MAX: usize = 64;
/// For the last word at an orderly end.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// What the engine is told.
#[derive(Clone, Debug)]
pub enum News {
    Members(Vec<Member>),
    KnownBy(KnownBy),
}

/// The running thread. Dropped, it takes this host off the list, if etcd is there, and ends.
pub struct Driver {
    news: mpsc::Receiver<News>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// `clock`: as the engine's. `wake` is called when there are news.
    pub fn start(
        etcd: EtcdOptions,
        options: MembershipOptions,
        clock: fn() -> Time,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (say, news) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("membership".into()).spawn(move || {
            let names = etcd.endpoints.iter().map(ToString::to_string).collect();
            let place = Place { prefix: options.prefix.clone(), host: options.host.clone(), value: options.value() };
            let machine = Membership::new(clock(), options);
            let (hear, heard) = tasks::channel(HEARD_MAX);
            let client = Client::new(etcd, place);
            let runner = Runner {
                machine,
                client,
                names,
                clock,
                hear,
                heard,
                running: HashMap::new(),
                say,
                wake,
                known_by: None,
            };
            LocalSet::new().block_on(&runtime, runner.run(stopped));
            // A name that is still being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { news, stop: Some(stop), thread: Some(thread) })
    }

    pub fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Neither waits for anything but the thread, which has a limit of its own.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that asked etcd has panicked");
        }
    }
}

/// What came of something that was asked.
enum Heard {
    Answered(u64, Result<Answer, Failure>),
    Watched(u64, Watched),
}

struct Runner {
    machine: Membership,
    client: Client,
    names: Vec<String>,
    clock: fn() -> Time,
    hear: tasks::Sender<Heard>,
    heard: tasks::Receiver<Heard>,
    running: HashMap<u64, AbortHandle>,
    say: mpsc::Sender<News>,
    wake: Arc<dyn Fn() + Send + Sync>,
    known_by: Option<KnownBy>,
}

impl Runner {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            self.turn();
            let due = self
                .machine
                .poll_timeout()
                .map_or(Duration::MAX, |at| Duration::from_micros(at.since_us((self.clock)())));
            tokio::select! {
                heard = self.heard.recv() => self.hear(heard),
                () = tokio::time::sleep(due.min(Duration::from_secs(3600))) => {}
                // Also when the driver was dropped without a word.
                _ = &mut stopped => break,
            }
        }
        self.running.drain().for_each(|(_, task)| task.abort());
        self.machine.stop();
        let last = async {
            self.turn();
            while !self.machine.is_stopped() {
                let heard = self.heard.recv().await;
                self.hear(heard);
                self.turn();
            }
        };
        if timeout(STOP_WITHIN, last).await.is_err() {
            self.log(&Note::Unrevoked { why: late(STOP_WITHIN).why });
        }
    }

    fn hear(&mut self, heard: Option<Heard>) {
        let now = (self.clock)();
        match heard.expect("this holds a sender itself") {
            Heard::Answered(number, answer) => {
                self.running.remove(&number);
                self.machine.answered(now, number, answer);
            }
            Heard::Watched(number, watched) => {
                if matches!(watched, Watched::Failed(_) | Watched::Compacted) {
                    self.running.remove(&number);
                }
                self.machine.watched(now, number, watched);
            }
        }
    }

    fn turn(&mut self) {
        while let Some(ask) = self.machine.poll_ask((self.clock)()) {
            self.begin(ask);
        }
        while let Some(note) = self.machine.poll_note() {
            self.log(&note);
        }
        let members = self.machine.poll_members();
        let known_by = self.machine.known_by(|endpoint| self.names[endpoint].clone());
        let is_known = self.known_by.as_ref() == Some(&known_by);
        if members.is_none() && is_known {
            return;
        }
        // The engine that does not listen any more is about to stop this.
        let _ = members.map(|members| self.say.send(News::Members(members)));
        let _ = self.say.send(News::KnownBy(known_by.clone()));
        self.known_by = Some(known_by);
        (self.wake)();
    }

    fn begin(&mut self, ask: Ask) {
        let (client, hear) = (self.client.clone(), self.hear.clone());
        let (number, task) = match ask {
            Ask::End { number } => {
                if let Some(task) = self.running.remove(&number) {
                    task.abort();
                }
                return;
            }
            Ask::Call { number, endpoint, request, within_us } => {
                let name = self.names[endpoint].clone();
                let call = async move {
                    let answer = called(&client, endpoint, &request, within_us).await;
                    let _ = hear.send(Heard::Answered(number, answer.map_err(|failure| named(&name, failure)))).await;
                };
                (number, spawn_local(call))
            }
            Ask::Watch { number, endpoint, revision, within_us } => {
                let name = self.names[endpoint].clone();
                (number, spawn_local(watch(client, hear, name, number, endpoint, revision, within_us)))
            }
        };
        self.running.insert(number, task.abort_handle());
    }

    fn log(&self, note: &Note) {
        match note {
            Note::EndpointAway { endpoint, why } => {
                tracing::warn!(
                    endpoint = self.names[*endpoint],
                    why,
                    "an endpoint of etcd is away; the next one is asked"
                );
            }
            Note::Lost { why } => tracing::error!(why, "etcd is lost: the hosts seen last stay; it is tried again"),
            Note::Back { away_us } => tracing::info!(after_s = *away_us as f64 / 1e6, "etcd is back"),
            Note::Listed { address } => tracing::info!(address, "this host is listed in etcd"),
            Note::Unlisted { why } => tracing::warn!(why, "this host is listed in etcd no more; it asks to be again"),
            Note::Taken { by, for_good: false } => tracing::error!(
                by,
                "another host is listed under this one's name (peers.host): others go there. Give one of them another name; \
                 this one is listed when the name is free"
            ),
            Note::Taken { by, for_good: true } => tracing::error!(
                by,
                "this host's key in etcd was put by hand, without a lease: it does not go by itself. Delete it \
                 (etcdctl del); this host is listed then"
            ),
            Note::Former => tracing::info!(
                "this host's former daemon is still listed in etcd, at the same address; this one is when that lease ends"
            ),
            Note::Refused { why } => tracing::error!(why, "etcd does not let this host be listed; it asks again"),
            Note::Unrevoked { why } => {
                tracing::warn!(why, "etcd has not heard that this host goes: it is listed until its lease ends");
            }
            Note::Foreign { key, why } => tracing::warn!(key, why, "a key in etcd is no host's and is passed over"),
        }
    }
}

fn named(name: &str, failure: Failure) -> Failure {
    Failure { why: format!("{name}: {}", failure.why), ..failure }
}

async fn called(client: &Client, endpoint: usize, request: &Request, within_us: u64) -> Result<Answer, Failure> {
    let within = Duration::from_micros(within_us);
    timeout(within, client.call(endpoint, request)).await.unwrap_or_else(|_| Err(late(within)))
}

fn late(within: Duration) -> Failure {
    Failure::away(format!("no answer within {within:?}"))
}

async fn watch(
    client: Client,
    hear: tasks::Sender<Heard>,
    name: String,
    number: u64,
    endpoint: usize,
    revision: u64,
    within_us: u64,
) {
    let within = Duration::from_micros(within_us);
    let opened = async {
        let mut watch = client.watch(endpoint, revision).await?;
        match watch.next().await {
            Watched::Failed(failure) => Err(failure),
            first => Ok((watch, first)),
        }
    };
    let (mut watch, mut watched) = match timeout(within, opened).await.unwrap_or_else(|_| Err(late(within))) {
        Ok(opened) => opened,
        Err(failure) => {
            let _ = hear.send(Heard::Watched(number, failed(&client, &name, failure))).await;
            return;
        }
    };
    loop {
        if let Watched::Failed(failure) = watched {
            watched = failed(&client, &name, failure);
        }
        let is_last = matches!(watched, Watched::Failed(_) | Watched::Compacted);
        // Nobody hears any more: it is over.
        if hear.send(Heard::Watched(number, watched)).await.is_err() || is_last {
            return;
        }
        watched = watch.next().await;
    }
}

fn failed(client: &Client, name: &str, failure: Failure) -> Watched {
    if failure.kind == FailureKind::NoLogin {
        client.forget_login();
    }
    Watched::Failed(named(name, failure))
}
