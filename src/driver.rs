//! Drives one core's logic on one glommio executor: sockets, mail, time, reconnecting, moving to another server, draining.
//!
//! One task and one loop. Each turn asks everything that could have something for the logic, and the task sleeps only
//! when nothing had: then each of them has its waker. A task per direction would wake the executor as often again, and
//! a wake-up is what glommio is dear at. `pace` says how a core waits: by looking again or by sleeping. Both go without the
//! executor (`bell`), which has nothing else to run, unless `--sleep executor` says otherwise.
//!
//! Never: a decision about messages. Those are `shard`'s and `worker`'s.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
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
use glommio::timer::Timer;
use nats_wire::session::SignIn;
use tracing::{debug, info, warn};

use crate::bell::Bell;
use crate::opening::Opening;
use crate::stop::{Stage, Stop};
use crate::wire::{Via, Wire};

/// How often the logic is told the time. What needs time in it counts in seconds.
const TICK: Duration = Duration::from_secs(1);

/// A link that lived for so long was a good one: the next attempt starts with the shortest wait again.
const LIVED_LONG: Duration = Duration::from_secs(5);

/// The first wait after an attempt to connect failed.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// From when the next server knows that we are subscribed there until we are not at the one before any more: by then every other
/// server of their cluster knows it too, and nothing is left that would be sent to where we were.
const KNOWN_AFTER: Duration = Duration::from_secs(1);

/// What is on its way on a connection that is left has arrived after so long, or counts as lost.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

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
/// While there is a second wire, `link` is up: the logic's first connection is that of `link`, its second one that wire's.
pub struct Driver<L> {
    id: ShardId,
    logic: L,
    common: Arc<Common>,
    link: Link,
    moving: Move,
    /// Failures to move in a row.
    move_attempts: u32,
    /// It was said that there is nowhere to move to.
    is_loneliness_said: bool,
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

enum Link {
    /// Until this time.
    Waiting(Duration),
    Connecting(Opening),
    Up(Wire),
}

/// From a server that is about to close its connections to another one. The servers are at the one to go to.
enum Move {
    No,
    /// To be tried at this time.
    Wanted(Servers, Duration),
    Connecting(Servers, Opening),
    Beside(Box<Second>),
}

/// The connection to move to, beside the one that is still there.
struct Second {
    servers: Servers,
    wire: Wire,
    subscribed_at: Option<Duration>,
    /// When the logic began to leave the first one.
    left_at: Option<Duration>,
    /// When it was last looked at whether that has come to its end.
    looked_at: Duration,
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
            link: Link::Waiting(Duration::ZERO),
            moving: Move::No,
            move_attempts: 0,
            is_loneliness_said: false,
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
            // A socket that always has more would keep timers and the poll for writing from ever being looked at. A core that sleeps
            // without its executor must never return to it: glommio 0.9 parks although a task can run when something came into
            // its latency ring between two looks (`run_task_queues`), and nothing there would wake this one.
            if !self.is_alone() {
                glommio::yield_if_needed().await;
            }
        }
        self.say_status(self.epoch.elapsed());
        if let Link::Up(wire) = self.link {
            wire.close();
        }
        if let Move::Beside(second) = self.moving {
            second.wire.close();
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
        // Without a link there is nothing to look at; whoever opens a connection wakes us.
        self.step = match &self.link {
            Link::Up(_) => self.pace.next(found, self.logic.counters().messages(), self.epoch.elapsed()),
            _ => Step::Park,
        };
        Poll::Ready(())
    }

    /// Whether this core sleeps without its executor.
    fn is_alone(&self) -> bool {
        self.common.sleep == Sleep::Poll
    }

    fn sleep(&mut self) -> Poll<()> {
        if !self.is_alone() {
            return Poll::Pending;
        }
        let time = self.wakes_at().saturating_sub(self.epoch.elapsed());
        match (&self.link, &self.moving) {
            (Link::Up(wire), Move::Beside(second)) => {
                let first = wire.wanted(&self.logic);
                self.logic.swap_links();
                let second = second.wire.wanted(&self.logic);
                self.logic.swap_links();
                self.bell.sleep(&[first, second], time);
            }
            (Link::Up(wire), _) => self.bell.sleep(&[wire.wanted(&self.logic)], time),
            _ => self.bell.sleep::<TcpStream>(&[], time),
        }
        Poll::Ready(())
    }

    /// When there is something to do even if nothing happens.
    fn wakes_at(&self) -> Duration {
        match &self.link {
            Link::Waiting(until) => self.tick_at.min(*until),
            _ => self.tick_at,
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Found {
        let now = self.epoch.elapsed();
        let mut did = self.poll_stop(cx, now);
        // What has come is taken before the time is told: after a long pause of the whole process the server's answers are
        // here already.
        did |= self.poll_link(cx, now);
        did |= self.poll_move(cx, now);
        did |= self.poll_time(cx, now);
        did |= self.poll_mail_in(cx);
        self.logic.finish_turn(now);
        did |= self.poll_write(cx, now);
        did |= self.poll_mail_out(cx);
        self.say_notices();
        match did {
            false => Found::Nothing,
            true if self.has_more() => Found::More,
            true => Found::Some,
        }
    }

    fn poll_stop(&mut self, cx: &Context<'_>, now: Duration) -> bool {
        match self.common.stop.poll(self.id, cx) {
            Stage::Run => false,
            // A move that has begun is finished first: what comes on the other connection is ours as well.
            Stage::Drain if matches!(self.moving, Move::Beside(_)) => false,
            Stage::Drain => {
                // Asked anew each turn; only the first time does something.
                self.logic.drain(now);
                self.logic.is_drained()
            }
            Stage::Abort => true,
        }
    }

    fn has_more(&self) -> bool {
        let link = matches!(&self.link, Link::Up(wire) if wire.has_more());
        link || matches!(&self.moving, Move::Beside(second) if second.wire.has_more())
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        if self.is_parked_in_executor() {
            let left = self.wakes_at().saturating_sub(now);
            let timer = self.timer.get_or_insert_with(|| Timer::new(left));
            if Pin::new(timer).poll(cx).is_ready() {
                self.timer = None;
                let _ = self.tick(now);
                return true;
            }
        }
        self.tick(now)
    }

    fn tick(&mut self, now: Duration) -> bool {
        if now < self.tick_at {
            return false;
        }
        (self.tick_at, self.timer) = (now + TICK, None);
        if let Err(fault) = self.logic.on_time(now, wall_clock()) {
            self.lose_link(&fault);
        }
        if matches!(self.moving, Move::Beside(_)) {
            self.logic.swap_links();
            let result = self.logic.on_time(now, wall_clock());
            self.logic.swap_links();
            if let Err(fault) = result {
                self.lose_second(&fault);
            }
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
        let (is_parked_in_executor, is_alone) = (self.is_parked_in_executor(), self.is_alone());
        match &mut self.link {
            Link::Waiting(until) if now < *until => false,
            Link::Waiting(_) => {
                self.link = Link::Connecting(self.open(self.server()));
                true
            }
            Link::Connecting(opening) => match opened(opening, is_alone, cx) {
                Poll::Pending => false,
                Poll::Ready(Ok((wire, sign_in))) => {
                    self.link = Link::Up(wire);
                    self.logic.on_link(sign_in, now);
                    true
                }
                Poll::Ready(Err(error)) => {
                    self.lose_link(&error);
                    true
                }
            },
            Link::Up(wire) => {
                let via = via(is_parked_in_executor, cx);
                let read = wire.poll_read(&mut self.logic, via, self.servers.current(), &mut self.reads, now);
                read.unwrap_or_else(|why| {
                    self.lose_link(&why);
                    true
                })
            }
        }
    }

    /// A step on the way to another server.
    fn poll_move(&mut self, cx: &mut Context<'_>, now: Duration) -> bool {
        let (is_parked_in_executor, is_alone) = (self.is_parked_in_executor(), self.is_alone());
        let is_staying = self.common.stop.stage() != Stage::Run;
        match &mut self.moving {
            Move::No => false,
            Move::Wanted(..) if is_staying => {
                self.moving = Move::No;
                false
            }
            Move::Wanted(_, at) if now < *at => false,
            Move::Wanted(servers, _) => {
                let mut servers = servers.clone();
                servers.advance_past(self.servers.current());
                let (server, to) = (self.server(), servers.current());
                if self.move_attempts == 0 {
                    info!(core = self.id.0, %server, %to, "server is about to close: moving to another one");
                }
                let opening = self.open(to);
                self.moving = Move::Connecting(servers, opening);
                true
            }
            Move::Connecting(servers, opening) => match opened(opening, is_alone, cx) {
                Poll::Pending => false,
                Poll::Ready(Ok((wire, _))) if is_staying => {
                    wire.close();
                    self.moving = Move::No;
                    true
                }
                Poll::Ready(Ok((wire, sign_in))) => {
                    self.moving = Move::Beside(Box::new(Second {
                        servers: servers.clone(),
                        wire,
                        subscribed_at: None,
                        left_at: None,
                        looked_at: now,
                    }));
                    self.logic.swap_links();
                    self.logic.on_link(sign_in, now);
                    self.logic.swap_links();
                    true
                }
                Poll::Ready(Err(error)) => {
                    self.lose_second(&error);
                    true
                }
            },
            Move::Beside(second) => {
                let (server, via) = (second.servers.current(), via(is_parked_in_executor, cx));
                self.logic.swap_links();
                let read = second.wire.poll_read(&mut self.logic, via, server, &mut self.reads, now);
                let is_subscribed = self.logic.is_subscribed();
                self.logic.swap_links();
                match read {
                    Err(why) => {
                        self.lose_second(&why);
                        true
                    }
                    Ok(did) if is_subscribed => self.go_over(now) || did,
                    Ok(did) => did,
                }
            }
        }
    }

    /// Both connections are subscribed: leaves the first one when it is time, and then for good.
    fn go_over(&mut self, now: Duration) -> bool {
        let Move::Beside(second) = &mut self.moving else { unreachable!("two connections") };
        // What the whole process slept through, the server cannot have answered in: a core looks at least once a tick.
        let paused = now.saturating_sub(second.looked_at).saturating_sub(2 * TICK);
        second.looked_at = now;
        second.left_at = second.left_at.map(|left_at| left_at + paused);
        let subscribed_at = *second.subscribed_at.get_or_insert(now);
        match second.left_at {
            None if now >= subscribed_at + KNOWN_AFTER => {
                second.left_at = Some(now);
                self.logic.leave(now);
                true
            }
            Some(_) if self.logic.has_left() => {
                self.logic.change_links(now);
                self.take_over(now);
                info!(core = self.id.0, server = %self.server(), "moved");
                true
            }
            Some(left_at) if now >= left_at + LEAVE_WITHIN => {
                self.lose_link(&format!("not all was answered within {LEAVE_WITHIN:?} of our leaving"));
                true
            }
            _ => false,
        }
    }

    /// The second wire is the link.
    fn take_over(&mut self, now: Duration) {
        let Move::Beside(second) = std::mem::replace(&mut self.moving, Move::No) else {
            unreachable!("two connections")
        };
        self.is_loneliness_said = false;
        self.servers = second.servers;
        if let Link::Up(wire) = std::mem::replace(&mut self.link, Link::Up(second.wire)) {
            wire.close();
        }
        self.say_status(now);
    }

    /// To another server than the one that is about to close.
    fn move_on(&mut self) {
        let is_staying = self.common.stop.stage() != Stage::Run;
        // Before it is ready there is nothing to take along; then it is looked at again.
        let Some(ready_at) = self.ready_at.filter(|_| !is_staying && matches!(self.moving, Move::No)) else {
            return;
        };
        if self.servers.has_another() {
            // Servers that send us to and fro are not obeyed more often than that.
            self.moving = Move::Wanted(self.servers.clone(), ready_at + TICK);
            self.move_attempts = 0;
        } else if !std::mem::replace(&mut self.is_loneliness_said, true) {
            let server = self.server();
            warn!(core = self.id.0, %server, "server is about to close, and there is no other one that we know of");
        }
    }

    /// There is no other connection any more, or never was: tries again, unless it is too late to stay.
    fn lose_second(&mut self, why: &dyn std::fmt::Display) {
        let now = self.epoch.elapsed();
        let (servers, left_at) = match std::mem::replace(&mut self.moving, Move::No) {
            Move::Connecting(servers, _) => (servers, None),
            Move::Beside(second) => {
                self.logic.swap_links();
                self.logic.on_link_lost(now);
                self.logic.swap_links();
                second.wire.close();
                (second.servers, second.left_at)
            }
            Move::No | Move::Wanted(..) => unreachable!("nothing to lose"),
        };
        self.move_attempts += 1;
        let (core, server, attempt) = (self.id.0, servers.current(), self.move_attempts);
        let text = with_advice(&why.to_string(), server);
        if self.is_to_be_said(attempt, &text) {
            warn!(core, %server, attempt, "cannot move there, trying on: {text}");
        }
        if left_at.is_some() {
            self.lose_link(&"not subscribed any more, and the server to move to is lost");
        } else {
            self.moving = Move::Wanted(servers, now + TICK);
        }
    }

    fn is_parked_in_executor(&self) -> bool {
        self.step == Step::Park && !self.is_alone()
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
        let is_through_executor = !self.is_alone();
        let mut did = false;
        if let Link::Up(wire) = &mut self.link {
            did |=
                wire.poll_write(&mut self.logic, via(is_through_executor, cx), &mut self.written_bytes, now);
        }
        if let Move::Beside(second) = &mut self.moving {
            let via = via(is_through_executor, cx);
            self.logic.swap_links();
            did |= second.wire.poll_write(&mut self.logic, via, &mut self.written_bytes, now);
            self.logic.swap_links();
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

    fn open(&self, server: &Server) -> Opening {
        Opening::start(server.clone(), self.common.connect_timeout)
    }

    /// Closes the link, if there is one, says why, and goes on with the server that we are moving to, or with the next one after a
    /// while.
    fn lose_link(&mut self, why: &dyn std::fmt::Display) {
        self.say_notices();
        let lived = self.ready_at.take().map(|ready_at| self.epoch.elapsed().saturating_sub(ready_at));
        if lived.is_some_and(|lived| lived >= LIVED_LONG) {
            self.attempts = 0;
        }
        let (core, server, attempt) = (self.id.0, self.server(), self.attempts + 1);
        let server = server.clone();
        let text = with_advice(&why.to_string(), &server);
        if self.is_to_be_said(attempt, &text) {
            let what = if lived.is_some() { "disconnected" } else { "cannot connect, trying on" };
            warn!(core, %server, attempt, "{what}: {text}");
            self.is_loss_said = true;
        }
        self.is_loneliness_said = false;
        let now = self.epoch.elapsed();
        if let Move::Beside(_) = self.moving {
            self.logic.change_links(now);
            return self.take_over(now);
        }
        self.logic.on_link_lost(now);
        let link = if let Move::Connecting(servers, opening) = std::mem::replace(&mut self.moving, Move::No) {
            self.servers = servers;
            Link::Connecting(opening)
        } else {
            self.servers.advance();
            let delay = reconnect_delay(self.attempts, self.common.reconnect_delay_max);
            self.attempts += 1;
            self.timer = None;
            Link::Waiting(now + delay)
        };
        if let Link::Up(wire) = std::mem::replace(&mut self.link, link) {
            wire.close();
        }
        self.say_status(self.epoch.elapsed());
    }

    /// Whether a failure is to be told: the first time and then ever less often; and what was not said last.
    fn is_to_be_said(&mut self, attempt: u32, text: &str) -> bool {
        let now = self.epoch.elapsed();
        let is_new = self.said.as_ref().is_none_or(|(at, said)| said != text && now >= *at + SAID_EVERY);
        let is_said = attempt.is_power_of_two() || is_new;
        if is_said {
            self.said = Some((now, text.to_owned()));
        }
        is_said
    }

    fn server(&self) -> &Server {
        self.servers.current()
    }

    fn learn_servers(&mut self) {
        if let Some(info) = self.logic.link().and_then(|link| link.info()) {
            self.servers.learn(&info.connect_urls);
            if let Move::Wanted(servers, _) | Move::Connecting(servers, _) = &mut self.moving {
                servers.learn_from(&self.servers);
            }
            if info.ldm {
                self.move_on();
            }
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
                    warn!(core, server = %self.server(), "server refused: {}", with_advice(&text, self.server()));
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

fn opened(opening: &Opening, is_alone: bool, cx: &Context<'_>) -> Poll<io::Result<(Wire, SignIn)>> {
    opening.poll(cx).map(|opened| opened.and_then(|opened| Wire::new(opened, !is_alone)))
}

/// What `server` said, and what can be done about it where that is known.
fn with_advice(text: &str, server: &Server) -> String {
    let shown = fit_for_a_log(text);
    match advice(text, server.credentials.as_ref()) {
        Some(advice) => format!("{shown}: {advice}"),
        None => shown,
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

fn via<'a, 'b>(is_through_executor: bool, cx: &'a mut Context<'b>) -> Via<'a, 'b> {
    if is_through_executor { Via::Executor(cx) } else { Via::Itself }
}

pub fn wall_clock() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since_1970.as_secs().try_into().unwrap_or(i64::MAX), since_1970.subsec_nanos())
}
