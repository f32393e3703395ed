//! Replicas of the reporter: its own code, which runs on tokio, whose clock stands still but for the simulation.

use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use redis::{RedisFuture, RedisResult, Value};
use send_wrapper::SendWrapper;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use verve_reporter::simulated::{Commands, Settings, report};

use crate::endpoints::{self, Endpoints};
use crate::gate::Gate;
use crate::kafka::{self, Broker};
use crate::redis::{Answer, Link};
use crate::world::{Line, World, before};

/// How long the reporter waits for an answer of Redis.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command that waits for something new does so.
const BLOCK: Duration = Duration::from_secs(1);

/// A replica's way to Redis.
struct Redis {
    world: Rc<World>,
    line: Line,
    link: Rc<Cell<Link>>,
    gate: Rc<Gate>,
}

/// The same, as the reporter takes it.
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

    async fn ask(&self, commands: Vec<Vec<String>>) -> RedisResult<Vec<Value>> {
        self.gate.pass().await;
        let (world, server, link) = (self.world.clone(), self.world.servers[0].clone(), self.link.clone());
        let asked = self.world.message(&self.line, move || {
            let link = server.link.get().and(link.get());
            match link {
                Link::Refused => return Some(Err(Error::from(ErrorKind::ConnectionRefused))),
                Link::Silent => return None,
                Link::Deaf | Link::Up => {}
            }
            let answers: Vec<Answer> = commands
                .iter()
                .map(|words| world.execute(&server, words, false))
                .collect();
            (link == Link::Up).then_some(Ok(answers))
        });
        let answered = before(&self.world.alarm(TIMEOUT), asked).await;
        self.gate.pass().await;
        let answers = answered.unwrap_or_else(|| Err(Error::from(ErrorKind::TimedOut)))?;
        answers.into_iter().map(value).collect()
    }
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

/// A replica, which is started again after it was killed.
pub struct Replica {
    world: Rc<World>,
    broker: Rc<Broker>,
    endpoints: Rc<Endpoints>,
    settings: Settings,
    name: String,
    starts: Cell<u32>,
    /// Whether it reaches Redis.
    pub link: Rc<Cell<Link>>,
    /// Whether it is paused. Each process has one of its own, which stays closed once it is killed: whatever it has spawned does nothing any more.
    gate: RefCell<Rc<Gate>>,
    running: RefCell<Option<JoinHandle<()>>>,
}

impl Replica {
    /// One called so, which is not started yet.
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
        }
    }

    /// Starts it, in the runtime that drives the simulation.
    pub fn start(&self) {
        self.starts.set(self.starts.get() + 1);
        let gate: Rc<Gate> = Rc::default();
        self.gate.replace(gate.clone());
        let redis = Connection(SendWrapper::new(Rc::new(Redis {
            world: self.world.clone(),
            line: Line::default(),
            link: self.link.clone(),
            gate: gate.clone(),
        })));
        let work = report(
            self.settings.clone(),
            Arc::new(redis),
            kafka::Client::new(&self.world, &self.broker, &gate),
            endpoints::Client::new(&self.world, &self.endpoints, &gate),
            format!("{}-{}", self.name, self.starts.get()),
            CancellationToken::new(),
        );
        let work = Paused {
            gate: SendWrapper::new(gate),
            work: Box::pin(work),
        };
        self.running.replace(Some(tokio::spawn(work)));
    }

    /// Kills it.
    pub fn kill(&self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        self.gate.borrow().close(true);
    }

    /// Pauses it, or has it go on, unless it was killed.
    pub fn pause(&self, is_paused: bool) {
        if self.running.borrow().is_some() {
            self.gate.borrow().close(is_paused);
        }
    }

    /// Starts it anew: one that was killed twice is there once.
    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    /// Whether it has ended by itself, which it should not.
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
