//! Drives one core's logic on one glommio executor: socket, mail, time, reconnecting, draining.
//!
//! One task and one loop. Each turn asks everything that could have something for the logic, and the task sleeps only
//! when nothing had: then each of them has its waker. A task per direction would wake the executor as often again, and
//! a wake-up is what glommio is dear at. `pace` says how a core waits: by looking again or by sleeping, and while there is a
//! connection both go to the socket without the executor, which has nothing else to run then (`bell`).
//!
//! Never: a decision about messages. Those are `shard`'s and `worker`'s.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alarm_digest::alarm::Timestamp;
use alarm_digest::config::Sleep;
use alarm_digest::credentials::advice;
use alarm_digest::durable::backlog::{Backlog, News, ROOM_USED_SAID, Room};
use alarm_digest::logic::{Counters, Logic, Notice};
use alarm_digest::mesh::Mesh;
use alarm_digest::pace::{Found, Pace, Step};
use alarm_digest::reply::ReplyTo;
use alarm_digest::servers::{Server, Servers};
use alarm_digest::service_api::{Instance, Question};
use alarm_digest::shard::{Mail, ShardId};
use alarm_digest::status::{CoreStatus, ReadSizes, Rejected, Status};
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::Task;
use glommio::net::TcpStream;
use glommio::timer::Timer;
use nats_wire::session::SignIn;
use nats_wire::{Limits, ReceiveBuffer};
use rustix::event::PollFlags;
use tracing::{debug, info, warn};

use crate::bell::Bell;
use crate::stop::{Stage, Stop};
use crate::tls::explain;
use crate::transport::{Secured, open};

/// How often the logic is told the time. What needs time in it counts in seconds.
const TICK: Duration = Duration::from_secs(1);

/// A link that lived for so long was a good one: the next attempt starts with the shortest wait again.
const LIVED_LONG: Duration = Duration::from_secs(5);

/// The first wait after an attempt to connect failed.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// Between two lines about links that are lost for ever other reasons.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Of what a server says that is repeated in the log. Its own sentences have some 100; a lie can have a mebibyte.
const SAID_BYTES_MAX: usize = 500;

/// What all drivers share.
pub struct Common {
    pub servers: Vec<Server>,
    pub connect_timeout: Duration,
    pub reconnect_delay_max: Duration,
    /// How each core begins to pace itself.
    pub pace: Pace,
    pub sleep: Sleep,
    pub mesh: Mesh<Mail>,
    pub stop: Stop,
    pub status: Status,
    /// What the service API says of all of them, unless it says nothing.
    pub instance: Option<Instance>,
    /// What all cores count time from.
    pub epoch: Instant,
    /// Called by each core when it is connected for the first time.
    pub on_first_ready: Box<dyn Fn(&Server) + Send + Sync>,
}

/// How a core ended.
pub struct Report {
    pub counters: Counters,
    pub users: usize,
    pub alarms: usize,
    /// Publications that the server was not proved to have.
    pub unsettled: usize,
    pub is_drained: bool,
}

/// One core's driver.
///
/// `buffer` holds what came from the socket and is not used yet.
pub struct Driver<L> {
    id: ShardId,
    logic: L,
    common: Arc<Common>,
    link: Link,
    buffer: ReceiveBuffer,
    /// The last read or decode found everything used: only a read can bring more.
    is_dry: bool,
    /// The last read filled its space, so that there is likely more.
    is_full: bool,
    pace: Pace,
    /// How the next turn looks.
    step: Step,
    /// What wakes this core when it sleeps outside its executor.
    bell: Arc<Bell>,
    inbox: Vec<Mail>,
    epoch: Instant,
    /// When the logic is told the time next, and what wakes a core for it that sleeps.
    tick_at: Duration,
    timer: Option<Timer>,
    /// Failures in a row; a link that did not live for long is one.
    attempts: u32,
    /// Why a link was lost, as it was last said, and when.
    said: Option<(Duration, String)>,
    /// Since it was last said that there is a link.
    is_loss_said: bool,
    /// When this link was ready, if it is.
    ready_at: Option<Duration>,
    servers: Servers,
    has_been_ready: bool,
    reads: ReadSizes,
    written_bytes: u64,
    last_rejection: Option<Rejected>,
}

/// A connection whose link is still to be made of it.
struct Opened {
    stream: TcpStream,
    direct: net::TcpStream,
    tls: Option<Box<Secured>>,
    received: ReceiveBuffer,
    sign_in: SignIn,
}

enum Link {
    Waiting(Timer),
    /// In a task of its own: glommio's `spawn_blocking` remembers a waker for each time it is polled, and panics after
    /// 32,767 of them, while mail may wake this core as often during one attempt.
    Connecting(Task<io::Result<Opened>>),
    Up {
        /// The socket as the executor knows it, which wakes us.
        stream: TcpStream,
        /// The same socket for looking without the executor: nothing but one `recv`, while a poll of the executor's ring costs
        /// several system calls and finds data only after the next turn of its own.
        direct: net::TcpStream,
        /// What stands between the buffers and the socket; nothing, if the connection is plain.
        tls: Option<Box<Secured>>,
        /// Nothing can be written any more. What the server sent before that is ours and is read to its end, which says why;
        /// output goes nowhere meanwhile, so that it holds nothing back, and is proved to nobody.
        is_mute: bool,
    },
}

impl<L: Logic> Driver<L> {
    pub fn new(id: ShardId, mut logic: L, common: Arc<Common>, bell: Bell) -> Self {
        if let Some(instance) = common.instance.as_ref().filter(|_| id == ShardId(0)) {
            logic.answer_as(&instance.id);
        }
        Self {
            id,
            logic,
            // Cores that start together begin at different servers, so that the load is spread.
            servers: Servers::new(common.servers.clone(), id.0),
            pace: common.pace.clone(),
            step: Step::Look,
            bell: Arc::new(bell),
            link: Link::Waiting(Timer::new(Duration::ZERO)),
            buffer: ReceiveBuffer::new(Limits::client()),
            is_dry: true,
            is_full: false,
            inbox: Vec::new(),
            epoch: common.epoch,
            common,
            tick_at: TICK,
            timer: None,
            attempts: 0,
            said: None,
            is_loss_said: false,
            ready_at: None,
            has_been_ready: false,
            reads: ReadSizes::default(),
            written_bytes: 0,
            last_rejection: None,
        }
    }

    /// Runs until drained or aborted.
    pub async fn run(mut self) -> Report {
        loop {
            std::future::poll_fn(|cx| self.poll_step(cx)).await;
            let is_aborted = self.common.stop.stage() == Stage::Abort;
            if self.logic.is_drained() || is_aborted {
                break;
            }
            // A socket that always has more would keep timers and the poll for writing from ever being looked at.
            if !self.is_alone() {
                glommio::yield_if_needed().await;
            }
        }
        self.say_status(self.epoch.elapsed());
        self.say_goodbye();
        match self.link {
            Link::Up { stream, .. } => drop(stream.shutdown(net::Shutdown::Both).await),
            // glommio's thread panics when nobody waits for what it did, and a panic ends the other cores as well.
            Link::Connecting(opening) => drop(opening.await),
            Link::Waiting(_) => {}
        }
        let (users, alarms) = self.logic.holds();
        Report {
            counters: self.logic.counters().clone(),
            users,
            alarms,
            unsettled: self.logic.unsettled(),
            is_drained: self.logic.is_drained(),
        }
    }

    /// One turn, and what `pace` makes of it. With nothing to do after [`Step::Park`], whatever could change that has a waker:
    /// then it is pending, or sleeps here.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let step = self.step;
        let found = match step {
            Step::Park if self.is_alone() => {
                let waker = Waker::from(Arc::clone(&self.bell));
                self.turn(&mut Context::from_waker(&waker))
            }
            Step::Park => self.turn(cx),
            Step::Look => self.turn(&mut Context::from_waker(Waker::noop())),
            Step::Gather(span) => {
                // The whole core: a timer of the executor would cost more than it saves. Nobody else lives here.
                std::thread::sleep(span);
                self.turn(&mut Context::from_waker(Waker::noop()))
            }
        };
        if (step, found) == (Step::Park, Found::Nothing) {
            self.step = Step::Look;
            return self.sleep();
        }
        // Without a link there is nothing to look at, and the executor has a connection to make.
        self.step = match &self.link {
            Link::Up { .. } => self.pace.next(found, self.logic.counters().messages(), self.epoch.elapsed()),
            _ => Step::Park,
        };
        Poll::Ready(())
    }

    /// Whether the executor has nothing to run but this, and nothing to wait for.
    fn is_alone(&self) -> bool {
        self.common.sleep == Sleep::Poll && matches!(self.link, Link::Up { .. })
    }

    fn sleep(&self) -> Poll<()> {
        let Link::Up { direct, tls, is_mute, .. } = &self.link else { return Poll::Pending };
        if !self.is_alone() {
            return Poll::Pending;
        }
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, self.logic.takes_bytes());
        let has_unsent = !is_mute && tls.as_ref().is_some_and(|tls| tls.has_unsent());
        wanted.set(PollFlags::OUT, has_unsent || !self.logic.output().is_empty());
        self.bell.sleep(direct, wanted, self.tick_at.saturating_sub(self.epoch.elapsed()));
        Poll::Ready(())
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Found {
        let now = self.epoch.elapsed();
        self.is_full = false;
        let mut did = self.poll_stop(cx, now);
        // What has come is taken before the time is told: after a long pause of the whole process the server's answers are
        // here already.
        did |= self.poll_link(cx, now);
        did |= self.poll_time(cx, now);
        did |= self.poll_mail_in(cx);
        self.logic.finish_turn(now);
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
                // Asked anew each turn; only the first time does something.
                self.logic.drain(now);
                self.logic.is_drained()
            }
            Stage::Abort => true,
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        if self.step == Step::Park && !self.is_alone() {
            let left = self.tick_at.saturating_sub(now);
            let timer = self.timer.get_or_insert_with(|| Timer::new(left));
            let _ = Pin::new(timer).poll(cx);
        }
        if now < self.tick_at {
            return false;
        }
        (self.tick_at, self.timer) = (now + TICK, None);
        if let Err(fault) = self.logic.on_time(now, wall_clock()) {
            self.lose_link(&fault);
        }
        self.say_status(now);
        true
    }

    fn say_status(&self, now: Duration) {
        let (users, alarms) = self.logic.holds();
        let status = CoreStatus {
            said_at: Some(now),
            ready_at: self.ready_at,
            server: self.server().to_string(),
            is_draining: self.common.stop.stage() != Stage::Run,
            has_ended: self.logic.is_drained(),
            counters: self.logic.counters().clone(),
            users,
            alarms,
            unsettled: self.logic.unsettled(),
            inbox: self.common.mesh.waiting(self.id),
            reads: self.reads.clone(),
            written_bytes: self.written_bytes,
            last_rejection: self.last_rejection.clone(),
        };
        self.common.status.say(self.id, status);
    }

    fn poll_link(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        match &mut self.link {
            Link::Waiting(timer) => {
                if Pin::new(timer).poll(cx).is_pending() {
                    return false;
                }
                self.link = Link::Connecting(glommio::spawn_local(self.open()));
                true
            }
            Link::Connecting(opening) => match Pin::new(opening).poll(cx) {
                Poll::Pending => false,
                Poll::Ready(Ok(Opened { stream, direct, tls, received, sign_in })) => {
                    self.link = Link::Up { stream, direct, tls, is_mute: false };
                    (self.buffer, self.is_dry) = (received, false);
                    self.logic.on_link(sign_in, now);
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

    /// One read and all that it brings, or what an earlier one brought and the logic did not take.
    fn poll_read(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        if !self.logic.takes_bytes() {
            return false;
        }
        if self.is_dry {
            match self.poll_fill(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => self.logic.heard(now),
                Poll::Ready(Err(error)) => {
                    self.lose_link(&explain(error, self.server()));
                    return true;
                }
            }
        }
        match self.logic.receive(self.buffer.unused(), now) {
            Ok(used) => self.buffer.consume(used),
            Err(fault) => {
                self.lose_link(&fault);
                return true;
            }
        }
        // Only what is full leaves complete operations behind.
        self.is_dry = self.logic.takes_bytes();
        true
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_parked = self.step == Step::Park && !self.is_alone();
        let Link::Up { stream, direct, tls, .. } = &mut self.link else {
            unreachable!("only a link that is up is read")
        };
        let mut read = |space: &mut [u8]| match is_parked {
            true => Pin::new(&mut *stream).poll_read(cx, space),
            false => unless_blocked(direct.read(space)),
        };
        let space = self.buffer.space();
        let (bytes, is_full) = match tls {
            None => (ready!(read(space))?, false),
            Some(tls) => (ready!(tls.poll_read(space, read))?, tls.is_full()),
        };
        if bytes == 0 {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "server closed the connection");
            return Poll::Ready(Err(error));
        }
        self.is_full = is_full || bytes == space.len();
        self.reads.observe(bytes as u64);
        self.buffer.filled(bytes);
        Poll::Ready(Ok(()))
    }

    fn poll_mail_in(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.logic.takes_mail()
            || self.common.mesh.poll_receive(self.id, &mut self.inbox, cx).is_pending()
        {
            return false;
        }
        self.inbox.drain(..).for_each(|mail| self.logic.on_mail(mail));
        true
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        let (mut did, is_alone) = (false, self.is_alone());
        let Link::Up { stream, direct, tls, is_mute } = &mut self.link else { return false };
        let mut write = |bytes: &[u8]| match is_alone {
            true => unless_blocked(direct.write(bytes)),
            false => Pin::new(&mut *stream).poll_write(cx, bytes),
        };
        while !self.logic.output().is_empty() {
            let output = self.logic.output();
            let written = match tls {
                None => write(output),
                Some(tls) => tls.poll_write(output, &mut write),
            };
            match written {
                _ if *is_mute => self.logic.wrote(self.logic.output().len(), now),
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => {
                    self.written_bytes += bytes as u64;
                    self.logic.wrote(bytes, now);
                }
                Poll::Ready(Err(_)) => *is_mute = true,
            }
            did = true;
        }
        // What TLS has taken counts as written, so nothing else would come back to it.
        if let Some(tls) = tls {
            *is_mute |= matches!(tls.poll_flush(write), Poll::Ready(Err(_)));
        }
        did
    }

    fn poll_mail_out(&mut self, cx: &mut Context<'_>) -> bool {
        let mut did = false;
        for peer in (0..self.common.mesh.shards()).map(ShardId) {
            let Some(mail) = self.logic.mail_for(peer) else { break };
            if !mail.is_empty() && self.common.mesh.poll_send(peer, mail, cx).is_ready() {
                did = true;
            }
        }
        if did {
            self.logic.mail_moved();
        }
        did
    }

    /// Resolving, connecting and shaking hands block, so a thread beside the executor does it.
    fn open(&mut self) -> impl Future<Output = io::Result<Opened>> + 'static {
        let server = self.server().clone();
        let timeout = self.common.connect_timeout;
        async move {
            let opened = glommio::executor().spawn_blocking(move || open(&server, timeout)).await?;
            let direct = opened.socket.try_clone()?;
            // Of both, since it is one socket. glommio does not mind.
            direct.set_nonblocking(true)?;
            Ok(Opened {
                stream: opened.socket.into(),
                direct: direct.into(),
                tls: opened.tls.map(|tls| Box::new(Secured::new(tls))),
                received: opened.received,
                sign_in: opened.sign_in,
            })
        }
    }

    /// Closes the link, if there is one, says why, and goes on with the next server after a while.
    fn lose_link(&mut self, why: &dyn std::fmt::Display) {
        self.say_notices();
        let lived = self.ready_at.take().map(|ready_at| self.epoch.elapsed().saturating_sub(ready_at));
        if lived.is_some_and(|lived| lived >= LIVED_LONG) {
            self.attempts = 0;
        }
        let (core, server, attempt) = (self.id.0, self.server(), self.attempts + 1);
        let (text, now) = (self.with_advice(&why.to_string()), self.epoch.elapsed());
        let is_new = self.said.as_ref().is_none_or(|(at, said)| *said != text && now >= *at + SAID_EVERY);
        // The first time and then ever less often, until a link has lived for long again; and what was not said last.
        if attempt.is_power_of_two() || is_new {
            let what = if lived.is_some() { "disconnected" } else { "cannot connect, trying on" };
            warn!(core, %server, attempt, "{what}: {text}");
            (self.said, self.is_loss_said) = (Some((now, text)), true);
        }
        self.say_goodbye();
        if let Link::Up { stream, .. } = &mut self.link {
            // Dropping it alone would close it only when the executor next looks at its polls.
            let _ = Pin::new(stream).poll_close(&mut Context::from_waker(Waker::noop()));
        }
        self.logic.on_link_lost(self.epoch.elapsed());
        self.servers.advance();
        let delay = reconnect_delay(self.attempts, self.common.reconnect_delay_max);
        self.attempts += 1;
        self.link = Link::Waiting(Timer::new(delay));
        self.say_status(self.epoch.elapsed());
    }

    /// TLS has a word for the end of a connection.
    fn say_goodbye(&mut self) {
        if let Link::Up { direct, tls: Some(tls), .. } = &mut self.link {
            tls.close(|bytes| unless_blocked(direct.write(bytes)));
        }
    }

    fn server(&self) -> &Server {
        self.servers.current()
    }

    /// What the server said, and what can be done about it where that is known.
    fn with_advice(&self, text: &str) -> String {
        let shown = fit_for_a_log(text);
        match advice(text, self.server().credentials.as_ref()) {
            Some(advice) => format!("{shown}: {advice}"),
            None => shown,
        }
    }

    fn learn_servers(&mut self) {
        if let Some(info) = self.logic.link().and_then(|link| link.info()) {
            self.servers.learn(&info.connect_urls);
        }
    }

    fn say_notices(&mut self) {
        if self.logic.notices().is_empty() {
            return;
        }
        let core = self.id.0;
        for notice in std::mem::take(self.logic.notices()) {
            match notice {
                Notice::Ready => self.say_ready(),
                Notice::Backlog(news, queue) => say_backlog(news, &queue),
                Notice::Room(stream, Room { bytes, bytes_max }) => warn!(
                    bytes,
                    bytes_max,
                    "{stream} is more than {ROOM_USED_SAID} % full, and when it is full everything waits: give it more room \
                     (nats stream edit {stream} --max-bytes)"
                ),
                Notice::Info => self.learn_servers(),
                Notice::Refused(text) => {
                    warn!(core, server = %self.server(), "server refused: {}", self.with_advice(&text));
                }
                Notice::Asked(question, reply) => self.answer(question, &reply),
                Notice::Rejected { subject, rejection, unsaid } => {
                    let (at, text) = (self.epoch.elapsed(), rejection.to_string());
                    self.last_rejection = Some(Rejected { at, subject: subject.clone(), text });
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

    /// What the other cores last said may be a second old.
    fn answer(&mut self, question: Question, reply: &ReplyTo) {
        let Some(instance) = &self.common.instance else { return };
        let now = self.epoch.elapsed();
        self.say_status(now);
        let max_payload = self.logic.link().and_then(|link| link.info()).map_or(0, |info| info.max_payload);
        let bytes_max = usize::try_from(max_payload).unwrap_or(usize::MAX);
        let answer = instance.answer(question, &self.common.status.cores(), bytes_max);
        self.logic.answer(reply, &answer, now);
    }

    fn say_ready(&mut self) {
        self.ready_at = Some(self.epoch.elapsed());
        self.say_status(self.epoch.elapsed());
        self.learn_servers();
        let link = self.logic.link().and_then(|link| link.info());
        let version = link.map_or_else(String::new, |info| fit_for_a_log(&info.version));
        if self.has_been_ready {
            if std::mem::take(&mut self.is_loss_said) {
                info!(core = self.id.0, server = %self.server(), version, "reconnected");
            }
            return;
        }
        self.has_been_ready = true;
        debug!(core = self.id.0, server = %self.server(), version, "connected");
        (self.common.on_first_ready)(self.server());
    }
}

fn say_backlog(news: News, queue: &Backlog) {
    let Backlog { pending, ack_pending, redelivered } = *queue;
    match news {
        News::Waiting => info!(pending, ack_pending, redelivered, "backlog: messages wait in the queue"),
        News::Gone => info!(pending, ack_pending, redelivered, "backlog: gone"),
        News::Stuck => warn!(
            pending,
            ack_pending,
            redelivered,
            "messages keep coming again: they cannot be done, or whoever gets them does not live to do them"
        ),
    }
}

/// What a stranger said, cut, and without what would do something to a terminal.
fn fit_for_a_log(text: &str) -> String {
    let end = text.floor_char_boundary(SAID_BYTES_MAX);
    let mut shown = String::with_capacity(end);
    for letter in text[..end].chars() {
        if letter.is_control() { shown.extend(letter.escape_default()) } else { shown.push(letter) }
    }
    if end < text.len() {
        shown.push('…');
    }
    shown
}

/// Twice as long each time up to `max`, and each time between a half and the whole of that, so that cores which lost
/// the same server do not come back in step.
fn reconnect_delay(attempts: u32, max: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let whole = RECONNECT_DELAY_MIN.saturating_mul(1 << attempts.min(16)).min(max);
    let random = RandomState::new().hash_one(attempts) >> 32;
    whole / 2 + (whole / 2).mul_f64(random as f64 / f64::from(u32::MAX))
}

fn unless_blocked<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

pub fn wall_clock() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since_1970.as_secs().try_into().unwrap_or(i64::MAX), since_1970.subsec_nanos())
}
