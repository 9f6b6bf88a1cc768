//! The service's driver, step for step, on tokio: one task and one loop per shard.
//!
//! It looks and sleeps as the service does, by the same `pace`, and looks without the runtime as well.
//!
//! Never: a decision about messages. Those are `shard`'s.

use std::future::Future;
use std::io::{self, Read};
use std::net;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alarm_digest::alarm::Timestamp;
use alarm_digest::logic::{Counters, Logic, Notice};
use alarm_digest::mesh::Mesh;
use alarm_digest::pace::{Found, Pace, Step};
use alarm_digest::servers::Server;
use alarm_digest::shard::{Mail, Shard, ShardId};
use nats_wire::session::SignIn;
use nats_wire::{Limits, ReceiveBuffer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tracing::{info, warn};

use crate::connect::connect;
use crate::stop::{Stage, Stop};

/// As in the service's driver.
const TICK: Duration = Duration::from_secs(1);
const LIVED_LONG: Duration = Duration::from_secs(5);
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// What all drivers share.
pub struct Common {
    pub servers: Vec<Server>,
    pub connect_timeout: Duration,
    pub reconnect_delay_max: Duration,
    pub pace: Pace,
    pub mesh: Mesh<Mail>,
    pub stop: Stop,
    /// Called by each driver when it is connected for the first time.
    pub on_first_ready: Box<dyn Fn(&Server) + Send + Sync>,
}

/// How a driver ended.
pub struct Report {
    pub counters: Counters,
    pub unsettled: usize,
    pub is_drained: bool,
}

/// One shard's driver.
///
/// `buffer` holds what came from the socket and is not used yet.
pub struct Driver {
    id: ShardId,
    shard: Shard,
    common: Arc<Common>,
    link: Link,
    buffer: ReceiveBuffer,
    /// The last read or decode found everything used: only a read can bring more.
    is_dry: bool,
    is_full: bool,
    pace: Pace,
    step: Step,
    inbox: Vec<Mail>,
    epoch: Instant,
    tick_at: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    attempts: u32,
    ready_at: Option<Duration>,
    server_next: usize,
    has_been_ready: bool,
}

/// One socket: as the runtime knows it, for looking without the runtime, and what to sign in with.
type Socket = (TcpStream, net::TcpStream, SignIn);

enum Link {
    /// None: at once.
    Waiting(Option<Pin<Box<Sleep>>>),
    Connecting(Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>),
    Up {
        stream: TcpStream,
        direct: net::TcpStream,
        is_mute: bool,
    },
}

impl Driver {
    pub fn new(id: ShardId, shard: Shard, common: Arc<Common>) -> Self {
        Self {
            id,
            shard,
            server_next: id.0,
            pace: common.pace.clone(),
            step: Step::Look,
            common,
            link: Link::Waiting(None),
            buffer: ReceiveBuffer::new(Limits::client()),
            is_dry: true,
            is_full: false,
            inbox: Vec::new(),
            epoch: Instant::now(),
            tick_at: TICK,
            timer: None,
            attempts: 0,
            ready_at: None,
            has_been_ready: false,
        }
    }

    /// Runs until drained or aborted.
    pub async fn run(mut self) -> Report {
        let mut yielded_at = Instant::now();
        loop {
            std::future::poll_fn(|cx| self.poll_step(cx)).await;
            let is_aborted = self.common.stop.stage() == Stage::Abort;
            if self.shard.is_drained() || is_aborted {
                break;
            }
            // As often as glommio's `yield_if_needed`.
            if yielded_at.elapsed() >= Duration::from_millis(10) {
                tokio::task::yield_now().await;
                yielded_at = Instant::now();
            }
        }
        Report {
            counters: self.shard.counters().clone(),
            unsettled: self.shard.unsettled(),
            is_drained: self.shard.is_drained(),
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let step = self.step;
        let found = match step {
            Step::Park => self.turn(cx),
            Step::Look => self.turn(&mut Context::from_waker(Waker::noop())),
            Step::Gather(span) => {
                std::thread::sleep(span);
                self.turn(&mut Context::from_waker(Waker::noop()))
            }
        };
        if (step, found) == (Step::Park, Found::Nothing) {
            self.step = Step::Look;
            return Poll::Pending;
        }
        self.step = match &self.link {
            Link::Up { .. } => self.pace.next(found, self.shard.counters().messages(), self.epoch.elapsed()),
            _ => Step::Park,
        };
        Poll::Ready(())
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Found {
        let now = self.epoch.elapsed();
        self.is_full = false;
        let mut did = self.poll_stop(cx, now);
        did |= self.poll_link(cx, now);
        did |= self.poll_time(cx, now);
        did |= self.poll_mail_in(cx);
        self.shard.finish_turn(now);
        did |= self.poll_write(cx, now);
        did |= self.poll_mail_out(cx);
        self.say_notices();
        match did {
            false => Found::Nothing,
            true if self.is_full || !self.is_dry => Found::More,
            true => Found::Some,
        }
    }

    fn poll_stop(&mut self, cx: &Context<'_>, now: Duration) -> bool {
        match self.common.stop.poll(self.id, cx) {
            Stage::Run => false,
            Stage::Drain => {
                self.shard.drain(now);
                self.shard.is_drained()
            }
            Stage::Abort => true,
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        if self.step == Step::Park {
            let left = self.tick_at.saturating_sub(now);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
            let _ = timer.as_mut().poll(cx);
        }
        if now < self.tick_at {
            return false;
        }
        (self.tick_at, self.timer) = (now + TICK, None);
        if let Err(fault) = self.shard.on_time(now, wall_clock()) {
            self.lose_link(&fault);
        }
        true
    }

    fn poll_link(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        match &mut self.link {
            Link::Waiting(timer) => {
                if timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_pending()) {
                    return false;
                }
                self.link = Link::Connecting(Box::pin(self.open()));
                true
            }
            Link::Connecting(opening) => match opening.as_mut().poll(cx) {
                Poll::Pending => false,
                Poll::Ready(Ok((stream, direct, sign_in))) => {
                    self.link = Link::Up { stream, direct, is_mute: false };
                    (self.buffer, self.is_dry) = (ReceiveBuffer::new(Limits::client()), true);
                    self.shard.on_link(sign_in, now);
                    true
                }
                Poll::Ready(Err(error)) => {
                    self.lose_link(&error);
                    true
                }
            },
            Link::Up { .. } => self.poll_read(cx, now),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        if !self.shard.takes_bytes() {
            return false;
        }
        if self.is_dry {
            match self.poll_fill(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => self.shard.heard(now),
                Poll::Ready(Err(error)) => {
                    self.lose_link(&error);
                    return true;
                }
            }
        }
        match self.shard.receive(self.buffer.unused(), now) {
            Ok(used) => self.buffer.consume(used),
            Err(fault) => {
                self.lose_link(&fault);
                return true;
            }
        }
        self.is_dry = self.shard.takes_bytes();
        true
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Link::Up { stream, direct, .. } = &mut self.link else {
            unreachable!("only a link that is up is read")
        };
        let space = self.buffer.space();
        let bytes = match self.step {
            Step::Park => {
                let mut space = ReadBuf::new(space);
                ready!(Pin::new(stream).poll_read(cx, &mut space))?;
                space.filled().len()
            }
            Step::Look | Step::Gather(_) => match direct.read(space) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                read => read?,
            },
        };
        if bytes == 0 {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "server closed the connection");
            return Poll::Ready(Err(error));
        }
        self.is_full = bytes == space.len();
        self.buffer.filled(bytes);
        Poll::Ready(Ok(()))
    }

    fn poll_mail_in(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.shard.takes_mail()
            || self.common.mesh.poll_receive(self.id, &mut self.inbox, cx).is_pending()
        {
            return false;
        }
        self.inbox.drain(..).for_each(|mail| self.shard.on_mail(mail));
        true
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        let mut did = false;
        while let Link::Up { stream, is_mute, .. } = &mut self.link
            && !self.shard.output().is_empty()
        {
            match Pin::new(stream).poll_write(cx, self.shard.output()) {
                _ if *is_mute => self.shard.wrote(self.shard.output().len(), now),
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => self.shard.wrote(bytes, now),
                Poll::Ready(Err(_)) => *is_mute = true,
            }
            did = true;
        }
        did
    }

    fn poll_mail_out(&mut self, cx: &mut Context<'_>) -> bool {
        let mut did = false;
        for peer in (0..self.common.mesh.shards()).map(ShardId) {
            let Some(mail) = self.shard.mail_for(peer) else { break };
            if !mail.is_empty() && self.common.mesh.poll_send(peer, mail, cx).is_ready() {
                did = true;
            }
        }
        if did {
            self.shard.mail_moved();
        }
        did
    }

    /// Resolving and connecting block, so a thread beside the runtime does it.
    fn open(&mut self) -> impl Future<Output = io::Result<Socket>> + Send + 'static {
        let server = self.server().clone();
        let timeout = self.common.connect_timeout;
        async move {
            let connecting = tokio::task::spawn_blocking(move || connect(&server, timeout));
            let (socket, sign_in) = connecting.await.map_err(io::Error::other)??;
            socket.set_nonblocking(true)?;
            let direct = socket.try_clone()?;
            Ok((TcpStream::from_std(socket.into())?, direct.into(), sign_in))
        }
    }

    fn lose_link(&mut self, why: &dyn std::fmt::Display) {
        self.say_notices();
        let lived = self.ready_at.take().map(|ready_at| self.epoch.elapsed().saturating_sub(ready_at));
        if lived.is_some_and(|lived| lived >= LIVED_LONG) {
            self.attempts = 0;
        }
        let attempt = self.attempts + 1;
        if attempt.is_power_of_two() {
            warn!(core = self.id.0, server = %self.server(), attempt, "no connection: {why}");
        }
        self.shard.on_link_lost(self.epoch.elapsed());
        self.server_next += 1;
        let whole = RECONNECT_DELAY_MIN
            .saturating_mul(1 << self.attempts.min(16))
            .min(self.common.reconnect_delay_max);
        self.attempts += 1;
        let delay = whole / 2 + (whole / 2).mul_f64(fastrand::f64());
        self.link = Link::Waiting(Some(Box::pin(sleep(delay))));
    }

    fn server(&self) -> &Server {
        &self.common.servers[self.server_next % self.common.servers.len()]
    }

    fn say_notices(&mut self) {
        if self.shard.notices().is_empty() {
            return;
        }
        let core = self.id.0;
        for notice in std::mem::take(self.shard.notices()) {
            match notice {
                Notice::Ready => {
                    self.ready_at = Some(self.epoch.elapsed());
                    if !std::mem::replace(&mut self.has_been_ready, true) {
                        (self.common.on_first_ready)(self.server());
                    } else {
                        info!(core, server = %self.server(), "reconnected");
                    }
                }
                // It goes round the servers that it was given.
                Notice::Info => {}
                Notice::Asked(..) => {}
                Notice::Backlog(..) | Notice::Room(..) => unreachable!("there is no durable mode here"),
                Notice::Refused(text) => warn!(core, server = %self.server(), "server refused: {text}"),
                Notice::Rejected { subject, rejection, unsaid } => {
                    warn!(
                        core,
                        subject,
                        reason = rejection.reason.name(),
                        unsaid,
                        "bad message: {rejection}"
                    );
                }
            }
        }
    }
}

fn wall_clock() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since_1970.as_secs().try_into().unwrap_or(i64::MAX), since_1970.subsec_nanos())
}
