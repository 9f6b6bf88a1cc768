//! The service's driver, step for step, on tokio: one task and one loop per shard.
//!
//! Where tokio has a cheaper way than glommio it is taken. `poll_read` and `poll_write` clear the readiness themselves
//! after less than was asked for, so that a wake-up costs an `epoll_wait` and a `recv`; `try_read` would need another
//! `recv` to learn that there is no more.
//!
//! Never: a decision about messages. Those are `shard`'s.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alarm_digest::alarm::Timestamp;
use alarm_digest::config::Server;
use alarm_digest::logic::{Counters, Logic, Notice};
use alarm_digest::mesh::Mesh;
use alarm_digest::shard::{Mail, Shard, ShardId};
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
    /// How long a driver looks again and again before it sleeps.
    pub spin: Duration,
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
    inbox: Vec<Mail>,
    epoch: Instant,
    /// None until the first turn, which is the first moment inside a runtime.
    timer: Option<Pin<Box<Sleep>>>,
    attempts: u32,
    ready_at: Option<Duration>,
    server_next: usize,
    has_been_ready: bool,
    idle_since: Option<Instant>,
}

enum Link {
    /// None: at once.
    Waiting(Option<Pin<Box<Sleep>>>),
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Up {
        stream: TcpStream,
        is_mute: bool,
    },
}

impl Driver {
    pub fn new(id: ShardId, shard: Shard, common: Arc<Common>) -> Self {
        Self {
            id,
            shard,
            server_next: id.0,
            common,
            link: Link::Waiting(None),
            buffer: ReceiveBuffer::new(Limits::client()),
            is_dry: true,
            inbox: Vec::new(),
            epoch: Instant::now(),
            timer: None,
            attempts: 0,
            ready_at: None,
            has_been_ready: false,
            idle_since: None,
        }
    }

    /// Runs until drained or aborted.
    pub async fn run(mut self) -> Report {
        loop {
            let did = std::future::poll_fn(|cx| match self.poll_turn(cx) {
                Poll::Pending if self.spins() => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => Poll::Ready(true),
            })
            .await;
            let is_aborted = self.common.stop.stage() == Stage::Abort;
            if self.shard.is_drained() || is_aborted {
                break;
            }
            if did {
                self.idle_since = None;
            } else {
                // The runtime looks at its sockets before it comes back.
                tokio::task::yield_now().await;
            }
        }
        Report {
            counters: self.shard.counters().clone(),
            unsettled: self.shard.unsettled(),
            is_drained: self.shard.is_drained(),
        }
    }

    /// Whether to look again instead of sleeping; always asked after a turn without anything to do.
    fn spins(&mut self) -> bool {
        let spin = self.common.spin;
        let spins = !spin.is_zero() && self.idle_since.get_or_insert_with(Instant::now).elapsed() < spin;
        if !spins {
            self.idle_since = None;
        }
        spins
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.epoch.elapsed();
        let mut did = self.poll_stop(cx, now);
        did |= self.poll_link(cx, now);
        did |= self.poll_time(cx, now);
        did |= self.poll_mail_in(cx);
        self.shard.finish_turn(now);
        did |= self.poll_write(cx, now);
        did |= self.poll_mail_out(cx);
        self.say_notices();
        if did { Poll::Ready(()) } else { Poll::Pending }
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
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(TICK)));
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        timer.as_mut().reset(tokio::time::Instant::now() + TICK);
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
                Poll::Ready(Ok(stream)) => {
                    self.link = Link::Up { stream, is_mute: false };
                    (self.buffer, self.is_dry) = (ReceiveBuffer::new(Limits::client()), true);
                    self.shard.on_link(now);
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
        let Link::Up { stream, .. } = &mut self.link else { unreachable!("only a link that is up is read") };
        let mut space = ReadBuf::new(self.buffer.space());
        ready!(Pin::new(stream).poll_read(cx, &mut space))?;
        match space.filled().len() {
            0 => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "server closed the connection")))
            }
            bytes => {
                self.buffer.filled(bytes);
                Poll::Ready(Ok(()))
            }
        }
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
        while let Link::Up { stream, is_mute } = &mut self.link
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
    fn open(&mut self) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        let server = self.server().clone();
        let timeout = self.common.connect_timeout;
        async move {
            let connecting = tokio::task::spawn_blocking(move || connect(&server, timeout));
            let socket = connecting.await.map_err(io::Error::other)??;
            socket.set_nonblocking(true)?;
            TcpStream::from_std(socket.into())
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
                Notice::Backlog(..) => unreachable!("there is no durable mode here"),
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
