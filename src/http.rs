//! Health, readiness and metrics over HTTP, from a thread that is none of the cores': it disturbs no core, and answers also
//! when one hangs.
//!
//! One thread that waits for all its connections at once, each with a deadline, so that whoever is slow is in nobody's way;
//! where there is no room, the oldest has to go.
//!
//! Never: a connection that is kept, a body that is read, TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_digest::http_request::{HEAD_BYTES_MAX, Refusal, Request, parse};
use alarm_digest::metrics::{self, About};
use alarm_digest::status::{hung, unready};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use tracing::{info, warn};

use crate::driver::Common;
use crate::stop::Stage;

/// From being accepted to the last byte of the answer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// For being told of having been too slow, and for reading what is of no use any more.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

const CONNECTIONS_MAX: usize = 64;

const PLAIN: &str = "text/plain; charset=utf-8";

/// Listens on `addr`, and starts a thread that answers there, on other CPUs than the cores' `cpus` if there are any.
///
/// # Errors
/// Which address it is that cannot be had.
pub fn serve(addr: SocketAddr, cpus: Vec<usize>, about: About, common: Arc<Common>) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| format!("--http: cannot listen on {addr}"))?;
    listener.set_nonblocking(true)?;
    info!("listening: http://{} has /healthz, /readyz and /metrics", listener.local_addr()?);
    let run = move || {
        leave(&cpus);
        let mut server = Server { listener, connections: Vec::new(), about, common };
        loop {
            server.turn();
        }
    };
    std::thread::Builder::new().name("http".into()).spawn(run).context("cannot start a thread for HTTP")?;
    Ok(())
}

/// Goes away from `cpus`, unless there are no others that we may use.
fn leave(cpus: &[usize]) {
    let Ok(mut others) = sched_getaffinity(None) else { return };
    cpus.iter().for_each(|cpu| others.unset(*cpu));
    if others.count() > 0
        && let Err(error) = sched_setaffinity(None, &others)
    {
        warn!("the HTTP thread stays where the cores are: {error}");
    }
}

struct Server {
    listener: TcpListener,
    /// Oldest first.
    connections: Vec<Connection>,
    about: About,
    common: Arc<Common>,
}

struct Connection {
    stream: TcpStream,
    deadline: Instant,
    step: Step,
}

enum Step {
    /// This much of the request has come.
    Reading(Vec<u8>),
    /// This is still to be written.
    Writing(Vec<u8>),
    /// All is written. Closing before the other end does would take the answer from it, if it has not read that yet.
    Closing,
}

impl Server {
    /// Waits until something can be done, and does it.
    fn turn(&mut self) {
        self.wait();
        // One at a time, so that whoever comes is heard before others can push it out.
        if let Some(connection) = self.accept() {
            if self.connections.len() == CONNECTIONS_MAX {
                self.connections.remove(0);
            }
            self.connections.push(connection);
        }
        let now = Instant::now();
        let respond = |head: &[u8]| respond(head, &self.about, &self.common);
        self.connections.retain_mut(|connection| connection.turn(now, respond));
    }

    fn wait(&self) {
        let deadline = self.connections.iter().map(|connection| connection.deadline).min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).expect("a few seconds"));
        let mut polled = vec![PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(self.connections.iter().map(Connection::polled));
        // Whatever goes wrong, each turn looks at everything.
        let _ = poll(&mut polled, left.as_ref());
    }

    fn accept(&self) -> Option<Connection> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_for_later(&error) {
                    // Most likely no more files may be opened, and the listener stays ready all the while.
                    std::thread::sleep(Duration::from_millis(50));
                }
                return None;
            }
        };
        stream.set_nonblocking(true).ok()?;
        Some(Connection { stream, deadline: Instant::now() + TIME_MAX, step: Step::Reading(Vec::new()) })
    }
}

impl Connection {
    fn polled(&self) -> PollFd<'_> {
        let events = match self.step {
            Step::Writing(_) => PollFlags::OUT,
            Step::Reading(_) | Step::Closing => PollFlags::IN,
        };
        PollFd::new(&self.stream, events)
    }

    /// Does what can be done now, and says whether there is more to come.
    fn turn(&mut self, now: Instant, respond: impl Fn(&[u8]) -> Option<Vec<u8>>) -> bool {
        if self.deadline <= now {
            let Step::Reading(_) = self.step else { return false };
            self.deadline = now + LAST_WORDS_MAX;
            self.step = Step::Writing(encode(&refuse(Refusal::Late), false));
        }
        let is_open = self.read(respond).and_then(|is_open| Ok(is_open && self.write(now)?));
        is_open.unwrap_or_else(|error| is_for_later(&error))
    }

    /// One read, so that whoever sends without end does not hold up the others. False at the end.
    fn read(&mut self, respond: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<bool> {
        let mut bytes = [0; HEAD_BYTES_MAX];
        match &mut self.step {
            Step::Reading(head) => {
                let count = self.stream.read(&mut bytes)?;
                head.extend_from_slice(&bytes[..count]);
                if let Some(response) = respond(head) {
                    self.step = Step::Writing(response);
                }
                Ok(count > 0)
            }
            Step::Writing(_) => Ok(true),
            Step::Closing => Ok(self.stream.read(&mut bytes)? > 0),
        }
    }

    fn write(&mut self, now: Instant) -> io::Result<bool> {
        let Step::Writing(response) = &mut self.step else { return Ok(true) };
        while !response.is_empty() {
            let count = self.stream.write(response)?;
            response.drain(..count);
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.deadline = now + LAST_WORDS_MAX;
        self.step = Step::Closing;
        Ok(true)
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The answer to the request that `head` begins with; none while it is not complete.
fn respond(head: &[u8], about: &About, common: &Common) -> Option<Vec<u8>> {
    Some(match parse(head) {
        Ok(None) => return None,
        Ok(Some(request)) => {
            let page = page(&request, about, common).unwrap_or_else(|| refuse(Refusal::NotFound));
            encode(&page, request.is_head)
        }
        Err(refusal) => encode(&refuse(refusal), false),
    })
}

struct Page {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

fn page(request: &Request<'_>, about: &About, common: &Common) -> Option<Page> {
    let (cores, now) = (common.status.cores(), common.epoch.elapsed());
    let against_ready = || {
        let draining = (common.stop.stage() != Stage::Run).then(|| "draining".into());
        unready(&cores, now).into_iter().chain(draining).collect::<Vec<String>>()
    };
    match request.path {
        "/healthz" => Some(verdict(&hung(&cores, now))),
        "/readyz" => Some(verdict(&against_ready())),
        "/metrics" => Some(Page {
            status: "200 OK",
            content_type: request.format.content_type(),
            body: metrics::page(about, &cores, against_ready().is_empty(), now, request.format),
        }),
        _ => None,
    }
}

/// What speaks against it, one line each; nothing does, and it is ok.
fn verdict(against: &[String]) -> Page {
    let (status, body) = match against {
        [] => ("200 OK", "ok".into()),
        _ => ("503 Service Unavailable", against.join("\n")),
    };
    Page { status, content_type: PLAIN, body: body + "\n" }
}

fn refuse(refusal: Refusal) -> Page {
    let status = refusal.status();
    let body = format!("{status}: expected GET or HEAD of /healthz, /readyz or /metrics\n");
    Page { status, content_type: PLAIN, body }
}

fn encode(page: &Page, is_head: bool) -> Vec<u8> {
    let Page { status, content_type, body } = page;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nAllow: GET, HEAD\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_str(), if is_head { "" } else { body }].concat().into_bytes()
}
