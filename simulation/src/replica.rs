//! Replicas of the reporter: its own code, on tokio.
//!
//! Only the simulation advances the clock of tokio.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use redis::{RedisError, RedisFuture, RedisResult, Value};
use send_wrapper::SendWrapper;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use verve_reporter::simulated::{Commands, Settings, State, report};

use crate::endpoints::{self, Endpoints};
use crate::gate::Gate;
use crate::kafka::{self, Broker};
use crate::redis::{Answer, Link, Server, key};
use crate::world::{Line, World};

/// How long the reporter waits for an answer of Redis.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command that blocks waits for new entries.
const BLOCK: Duration = Duration::from_secs(1);

/// The links of a replica to Redis.
struct Redis {
    world: Rc<World>,
    /// The line to each server.
    lines: Vec<Line>,
    link: Rc<Cell<Link>>,
    gate: Rc<Gate>,
}

/// The same links, as the reporter uses them.
struct Connection(SendWrapper<Rc<Redis>>);

impl Commands for Connection {
    fn run(&self, commands: Vec<Vec<String>>) -> RedisFuture<'static, Vec<Value>> {
        let redis = self.0.clone();
        SendWrapper::new(async move { redis.run(commands).await }).boxed()
    }
}

impl Redis {
    async fn run(&self, commands: Vec<Vec<String>>) -> RedisResult<Vec<Value>> {
        let blocks = commands.first().is_some_and(|words| words[0] == "XREADGROUP");
        let answers = self.ask(commands.clone()).await?;
        if blocks && answers == [Value::Nil] {
            self.world.alarm(BLOCK).wait().await;
            return self.ask(commands).await;
        }
        Ok(answers)
    }

    /// Sends each command to the server that owns its keys, as a cluster client does.
    ///
    /// Follows redirects once.
    async fn ask(&self, commands: Vec<Vec<String>>) -> RedisResult<Vec<Value>> {
        let servers = &self.world.servers;
        if servers.len() == 1 {
            return self
                .ask_server(0, commands, false)
                .await?
                .into_iter()
                .map(value)
                .collect();
        }
        let mut of_servers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, words) in commands.iter().enumerate() {
            let owner = key(words).and_then(|key| servers.iter().position(|server| server.owns(key)));
            if words[0] == "SCRIPT" {
                (0..servers.len()).for_each(|server| of_servers.entry(server).or_default().push(number));
            } else {
                of_servers.entry(owner.unwrap_or_default()).or_default().push(number);
            }
        }
        let asked = of_servers.into_iter().map(async |(server, numbers)| {
            let words = numbers.iter().map(|number| commands[*number].clone()).collect();
            let answers = self.ask_server(server, words, false).await?;
            let mut followed = Vec::new();
            for (number, answer) in numbers.into_iter().zip(answers) {
                let words = &commands[number];
                let answer = match sent_on(&answer, servers) {
                    Some((to, is_asking)) => self.ask_server(to, vec![words.clone()], is_asking).await?.pop(),
                    None => Some(answer),
                };
                followed.push((number, answer.unwrap_or(Answer::Nil)));
            }
            Ok::<_, RedisError>(followed)
        });
        let asked: Vec<RedisResult<Vec<(usize, Answer)>>> = join_all(asked).await;
        let mut answers: BTreeMap<usize, Answer> = BTreeMap::new();
        for answered in asked {
            answers.extend(answered?);
        }
        answers.into_values().map(value).collect()
    }

    async fn ask_server(&self, number: usize, commands: Vec<Vec<String>>, is_asking: bool) -> RedisResult<Vec<Answer>> {
        let (world, server, link) = (
            self.world.clone(),
            self.world.servers[number].clone(),
            self.link.clone(),
        );
        let answered = self.world.ask(&self.gate, &self.lines[number], TIMEOUT, move || {
            let link = server.link.get().and(link.get());
            link.carry(Err(Error::from(ErrorKind::ConnectionRefused)), || {
                let answers = commands.iter().map(|words| world.execute(&server, words, is_asking, 0));
                Ok(answers.collect())
            })
        });
        let timed_out = || Err(Error::from(ErrorKind::TimedOut));
        Ok(answered.await.unwrap_or_else(timed_out)?)
    }
}

/// Returns the target of a redirect, and whether the client must send `ASKING`.
fn sent_on(answer: &Answer, servers: &[Rc<Server>]) -> Option<(usize, bool)> {
    let Answer::Error(error) = answer else {
        return None;
    };
    let mut words = error.split(' ');
    let is_asking = match words.next()? {
        "MOVED" => false,
        "ASK" => true,
        _ => return None,
    };
    let (host, _) = words.nth(1)?.split_once(':')?;
    let to = servers.iter().position(|server| server.host == host)?;
    Some((to, is_asking))
}

fn value(answer: Answer) -> RedisResult<Value> {
    Ok(match answer {
        Answer::Nil => Value::Nil,
        Answer::Number(number) => Value::Int(number),
        Answer::Text(text) => Value::BulkString(text.into_bytes()),
        Answer::Status(text) => Value::SimpleString(text),
        Answer::Many(answers) => Value::Array(answers.into_iter().map(value).collect::<RedisResult<_>>()?),
        Answer::Error(text) => redis::parse_redis_value(format!("-{text}\r\n").as_bytes())?,
    })
}

/// A replica, which is restarted after it was killed.
pub struct Replica {
    world: Rc<World>,
    broker: Rc<Broker>,
    endpoints: Rc<Endpoints>,
    settings: Settings,
    name: String,
    starts: Cell<u32>,
    /// Whether the replica reaches Redis.
    pub link: Rc<Cell<Link>>,
    /// Whether the replica is paused.
    ///
    /// Each process has its own gate, which stays closed after the process was killed. So the tasks
    /// that it spawned have no more effect.
    gate: RefCell<Rc<Gate>>,
    running: RefCell<Option<JoinHandle<()>>>,
    /// What the replica reports about itself.
    state: RefCell<State>,
    /// Since when the replica has run undisturbed.
    ///
    /// That is since its start, or since the end of its last pause.
    since: Cell<Duration>,
}

impl Replica {
    /// Creates a replica with this name, but does not start it.
    #[must_use]
    pub fn new(
        world: &Rc<World>,
        broker: &Rc<Broker>,
        endpoints: &Rc<Endpoints>,
        settings: Settings,
        name: String,
    ) -> Self {
        Self {
            world: world.clone(),
            broker: broker.clone(),
            endpoints: endpoints.clone(),
            settings,
            name,
            starts: Cell::default(),
            link: Rc::default(),
            gate: RefCell::default(),
            running: RefCell::default(),
            state: RefCell::default(),
            since: Cell::default(),
        }
    }

    /// Starts the replica in the runtime that drives the simulation.
    pub fn start(&self) {
        self.starts.set(self.starts.get() + 1);
        let gate: Rc<Gate> = Rc::default();
        self.gate.replace(gate.clone());
        let state = State::default();
        self.state.replace(state.clone());
        self.since.set(self.world.executor.now());
        let redis = Connection(SendWrapper::new(Rc::new(Redis {
            world: self.world.clone(),
            lines: self.world.servers.iter().map(|_| Line::default()).collect(),
            link: self.link.clone(),
            gate: gate.clone(),
        })));
        let work = report(
            self.settings.clone(),
            Arc::new(redis),
            kafka::Client::new(&self.world, &self.broker, &gate),
            endpoints::Client::new(&self.world, &self.endpoints, &gate),
            format!("{}-{}", self.name, self.starts.get()),
            state,
            CancellationToken::new(),
        );
        let work = Paused {
            gate: SendWrapper::new(gate),
            work: Box::pin(work),
        };
        self.running.replace(Some(tokio::spawn(work)));
    }

    /// Kills the replica.
    pub fn kill(&self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        self.gate.borrow().close(true);
    }

    /// Pauses or resumes the replica, unless it was killed.
    pub fn pause(&self, is_paused: bool) {
        if self.running.borrow().is_some() {
            self.gate.borrow().close(is_paused);
            self.since.set(self.world.executor.now());
        }
    }

    /// Starts the replica again. After two kills it still runs only once.
    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    /// Returns the problems that the replica reports.
    ///
    /// Returns `None` if it has run undisturbed for less than `runs_for`.
    #[must_use]
    pub fn problems(&self, runs_for: Duration) -> Option<Vec<String>> {
        let runs = self.running.borrow().is_some() && !self.gate.borrow().is_closed();
        let is_undisturbed = runs && self.world.executor.now() >= self.since.get() + runs_for;
        is_undisturbed.then(|| self.state.borrow().problems())
    }

    /// Returns whether the replica has ended without a kill, which is a problem.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(JoinHandle::is_finished)
    }
}

/// Work of a process that can be paused.
struct Paused {
    gate: SendWrapper<Rc<Gate>>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Paused {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.gate.poll(context).is_pending() {
            return Poll::Pending;
        }
        self.work.as_mut().poll(context)
    }
}
