//! Mail between two cores in the shape the service sends it: our mesh against glommio's shared channel, in turns within
//! one run. A batch of changes goes from an executor on one CPU to one on another; each is counted on arrival.
//!
//! `cargo run --release -p alarm-digest-benches --bin mesh`

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use alarm_digest::alarm::{AlarmId, Change, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::mesh::Mesh;
use alarm_digest::shard::{Mail, ShardId};
use glommio::channels::shared_channel;
use glommio::{GlommioError, LocalExecutorBuilder, Placement};

const MESSAGES: usize = 2_000_000;
const ROUNDS: usize = 5;
const TO: ShardId = ShardId(1);
/// As the service's `--mail-max`, in messages.
const CAPACITY: usize = 16 << 10;

fn main() {
    println!("ns per message, wall clock: median of {ROUNDS} (least-greatest), {MESSAGES} messages each");
    println!("{:>8}  {:>24}  {:>24}", "batch", "mesh", "glommio shared_channel");
    for batch in [1, 8, 64, 300] {
        let (mut mesh, mut channel) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mesh.push(over_mesh(batch));
            channel.push(over_channel(batch));
        }
        println!("{batch:>8}  {:>24}  {:>24}", spread(mesh), spread(channel));
    }
}

fn spread(mut runs: Vec<f64>) -> String {
    runs.sort_by(f64::total_cmp);
    format!("{:.1} ({:.1}-{:.1})", runs[runs.len() / 2], runs[0], runs[runs.len() - 1])
}

fn mail() -> Mail {
    let id = || Id::from_uuid([7; 16]);
    let condition = Condition::new(Timestamp::new(0, 0), Status::Warning);
    Mail::Apply(Change { user: UserId(id()), alarm: AlarmId(id()), condition })
}

fn fill(batch: &mut Vec<Mail>, size: usize) {
    batch.extend(std::iter::repeat_with(mail).take(size));
}

fn executor(cpu: usize) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(Placement::Fixed(cpu)).io_memory(64 << 10)
}

fn per_message(started: Instant) -> f64 {
    started.elapsed().as_nanos() as f64 / MESSAGES as f64
}

fn over_mesh(size: usize) -> f64 {
    let mesh = Arc::new(Mesh::<Mail>::new(2, CAPACITY));
    let theirs = Arc::clone(&mesh);
    let started = Instant::now();
    let receiver = executor(1).spawn(move || async move {
        let (mut inbox, mut count) = (Vec::new(), 0);
        while count < MESSAGES {
            poll_fn(|cx| theirs.poll_receive(TO, &mut inbox, cx)).await;
            count += inbox.drain(..).count();
        }
    });
    let sender = executor(0).spawn(move || async move {
        let mut batch = Vec::new();
        for _ in 0..MESSAGES / size {
            fill(&mut batch, size);
            poll_fn(|cx| mesh.poll_send(TO, &mut batch, cx)).await;
            glommio::yield_if_needed().await;
        }
        fill(&mut batch, MESSAGES % size);
        poll_fn(|cx| mesh.poll_send(TO, &mut batch, cx)).await;
    });
    for handle in [receiver, sender] {
        handle.expect("an executor").join().expect("it ends");
    }
    per_message(started)
}

fn over_channel(size: usize) -> f64 {
    let (sender, receiver) = shared_channel::new_bounded::<Vec<Mail>>(CAPACITY / size.min(CAPACITY));
    let started = Instant::now();
    let receiver = executor(1).spawn(move || async move {
        let (receiver, mut count) = (receiver.connect().await, 0);
        while count < MESSAGES {
            count += receiver.recv().await.expect("the sender lives until all is sent").len();
        }
    });
    let sender = executor(0).spawn(move || async move {
        let sender = sender.connect().await;
        for number in 0..MESSAGES.div_ceil(size) {
            let mut batch = Vec::new();
            fill(&mut batch, size.min(MESSAGES - number * size));
            while let Err(GlommioError::WouldBlock(glommio::ResourceType::Channel(back))) =
                sender.try_send(batch)
            {
                batch = back;
                glommio::executor().yield_task_queue_now().await;
            }
            glommio::yield_if_needed().await;
        }
    });
    for handle in [receiver, sender] {
        handle.expect("an executor").join().expect("it ends");
    }
    per_message(started)
}
