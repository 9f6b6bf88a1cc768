//! One nats-server with its port, its configuration and its log.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, ExitStatus, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Signal;
use crate::binary::Binary;
use crate::error::{Error, Trying};
use crate::port::Port;
use crate::process::{Process, Usage};
use crate::scratch::Scratch;
use crate::wait::poll;

/// A server starts in some 50 ms; a busy machine may take a hundred times as long.
const START_WITHIN: Duration = Duration::from_secs(30);

/// Time for the disconnects and, with JetStream, for the disk.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How long one try may take to connect, and then to be answered.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Ports that somebody took between our look and the server's start, before we call it no coincidence.
const CLASHES_MAX: usize = 10;

/// Longest INFO we read, in bytes; a server of a large cluster names all its routes.
const INFO_BYTES_MAX: u64 = 64 * 1024;

const CONFIG_FILE: &str = "nats-server.conf";

/// What a server says, and dies of, when its port is not free.
const CLASH: &str = "address already in use";

/// What to start. From [`Server::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    binary: Binary,
    config: String,
    monitor: bool,
    is_tls_first: bool,
    unadvertised: bool,
}

impl Builder {
    /// Appends lines to the configuration file, such as `max_payload: 4096` or `authorization { token: "s3cret" }`.
    /// Relative paths start in the server's own directory. Addresses and name are not for it to say.
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// With JetStream, whose store survives [`Server::restart`].
    pub fn jetstream(self) -> Self {
        self.config("jetstream { store_dir: \"jetstream\" }")
    }

    /// With the monitoring port that [`Server::monitor`] asks.
    pub fn monitoring(mut self) -> Self {
        self.monitor = true;
        self
    }

    /// With clients that speak first, as `handshake_first` of its `tls` has it: then it answers when it says so in its log.
    pub fn tls_first(mut self) -> Self {
        self.is_tls_first = true;
        self
    }

    /// In a cluster, without telling clients of the others.
    pub fn unadvertised(mut self) -> Self {
        self.unadvertised = true;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When it does not start, or does not answer in time; the error holds its log.
    pub fn start(&self) -> Result<Server, Error> {
        for _ in 0..CLASHES_MAX {
            let mut server = self.launch()?;
            match server.await_answer() {
                Start::Answered => return Ok(server),
                Start::Clashed => {}
                Start::Failed(error) => return Err(error),
            }
        }
        Err(Error::new(format!("{}: {CLASHES_MAX} free ports were taken before it started", self.binary)))
    }

    /// Starts so many servers that know each other, and waits until each answers. That they have agreed on who leads is
    /// another matter, of seconds.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start_cluster(&self, servers: usize) -> Result<Vec<Server>, Error> {
        let ports = (0..servers).map(|_| Port::reserve()).collect::<Result<Vec<_>, _>>()?;
        let routes: Vec<String> = ports.iter().map(|port| format!("\"nats://{}\"", addr(port))).collect();
        let routes = routes.join(", ");
        let start = |port: Port| {
            let listen = addr(&port);
            let lines = format!(
                "cluster {{ name: fixture, listen: \"{listen}\", routes: [{routes}], no_advertise: {} }}",
                self.unadvertised
            );
            let server = self.clone().config(&lines).start()?;
            Ok(Server { _route: Some(port), ..server })
        };
        ports.into_iter().map(start).collect()
    }

    fn launch(&self) -> Result<Server, Error> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("fixture-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scratch = Scratch::new("nats-server")?;
        let port = Port::reserve()?;
        let monitor = self.monitor.then(Port::reserve).transpose()?;

        let file = scratch.path().join(CONFIG_FILE);
        fs::write(&file, format!("server_name: {name}\n{}", self.config)).trying(file.display())?;
        // The command line wins over the configuration.
        let mut command = Command::new(self.binary.path());
        command.args(["-c", CONFIG_FILE, "-a", "127.0.0.1", "-p", &port.number().to_string()]);
        if let Some(port) = &monitor {
            command.args(["-m", &port.number().to_string()]);
        }
        command.current_dir(scratch.path());

        let process = Process::spawn_in(scratch.path(), &command)?;
        Ok(Server {
            process,
            command,
            binary: self.binary.clone(),
            name,
            port,
            monitor,
            is_tls_first: self.is_tls_first,
            starts_before: 0,
            _route: None,
            scratch,
        })
    }
}

fn addr(port: &Port) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.number()).into()
}

/// A nats-server on 127.0.0.1, on a port that stays its own over kills and restarts. Drop kills it and removes its
/// files; while a test fails, Drop prints the end of its log and keeps the files.
#[derive(Debug)]
pub struct Server {
    // Before its directory, as the fields are dropped in this order.
    process: Process,
    command: Command,
    binary: Binary,
    name: String,
    port: Port,
    monitor: Option<Port>,
    is_tls_first: bool,
    /// How often its log had said that it is ready before it was last started.
    starts_before: usize,
    /// Held, for as long as it is in a cluster.
    _route: Option<Port>,
    scratch: Scratch,
}

enum Start {
    Answered,
    Clashed,
    Failed(Error),
}

impl Server {
    /// A server that is still to be configured.
    pub fn builder(binary: &Binary) -> Builder {
        Builder {
            binary: binary.clone(),
            config: String::new(),
            monitor: false,
            is_tls_first: false,
            unadvertised: false,
        }
    }

    /// A server with the defaults of nats-server.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start(binary: &Binary) -> Result<Self, Error> {
        Self::builder(binary).start()
    }

    /// Where it listens, also while it is down.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        addr(&self.port)
    }

    /// `nats://127.0.0.1:10042`
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.addr())
    }

    /// The port of [`Server::addr`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The process id; another one after each restart.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The program it runs.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// What it calls itself, also to the others of its cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills it with SIGKILL, if it runs, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end with SIGTERM, and waits.
    ///
    /// # Errors
    /// When it has ended already, or does not end in half a minute.
    pub fn stop(&mut self) -> Result<ExitStatus, Error> {
        self.signal(Signal::TERM)?;
        self.process.wait(STOP_WITHIN)
    }

    /// Kills it, if it runs, starts it again on the same port with the same configuration and files, and waits until
    /// it answers. The log goes on.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            self.kill();
            self.starts_before = self.starts();
            self.process = Process::spawn_in(self.scratch.path(), &self.command)?;
            match self.await_answer() {
                Start::Answered => return Ok(()),
                // A passer-by on our port; nobody of ours can be there to stay.
                Start::Clashed if Instant::now() < deadline => {}
                Start::Clashed => return Err(self.failed(&format!("{} stayed taken", self.addr()))),
                Start::Failed(error) => return Err(error),
            }
        }
    }

    /// Freezes it with SIGSTOP: its connections stay open, and nothing is read or answered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn suspend(&mut self) -> Result<(), Error> {
        self.process.suspend()
    }

    /// Lets it go on after [`Server::suspend`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.process.resume()
    }

    /// Sends a signal: [`Signal::HUP`] reloads the configuration, [`Signal::USR2`] is lame duck mode.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        self.process.signal(signal)
    }

    /// Memory and processor time.
    ///
    /// # Errors
    /// When it does not run.
    pub fn usage(&self) -> Result<Usage, Error> {
        self.process.usage()
    }

    /// All it has said, over all restarts.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The JSON that the monitoring port answers for a path such as `/connz?subs=1` or `/varz`.
    ///
    /// # Errors
    /// When it does not answer, or not with 200.
    ///
    /// # Panics
    /// When it was started without [`Builder::monitoring`].
    pub fn monitor(&self, path: &str) -> Result<String, Error> {
        let port = self.monitor.as_ref().expect("the server was started with monitoring");
        let answer = http_get(addr(port), path).trying(path)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(Error::new(format!("{path}: expected 200, came: {answer}"))),
        }
    }

    /// Looks until our server answers, or has ended, or it is too late.
    fn await_answer(&mut self) -> Start {
        let came = poll(START_WITHIN, || match self.process.ended() {
            Some(_) if self.clashed() => Some(Start::Clashed),
            Some(status) => Some(Start::Failed(self.failed(&format!("ended with {status}")))),
            None => self.answers().then_some(Start::Answered),
        });
        came.unwrap_or_else(|| Start::Failed(self.failed(&format!("no answer within {START_WITHIN:?}"))))
    }

    /// Whether it is ours that listens on our port: whoever else does has another name.
    fn answers(&self) -> bool {
        if self.is_tls_first {
            return self.starts() > self.starts_before;
        }
        first_line(self.addr())
            .is_some_and(|info| info.contains(&format!("\"server_name\":\"{}\"", self.name)))
    }

    fn starts(&self) -> usize {
        self.log().matches("Server is ready").count()
    }

    fn clashed(&self) -> bool {
        self.log().lines().last().is_some_and(|line| line.contains(CLASH))
    }

    fn failed(&self, what: &str) -> Error {
        Error::new(format!("{} did not start: {what}\n{}", self.binary, self.process.last_words()))
    }
}

/// What a server says first, INFO, without being asked.
fn first_line(addr: SocketAddr) -> Option<String> {
    let stream = connect(addr).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(INFO_BYTES_MAX)).read_line(&mut line).ok()?;
    line.starts_with("INFO ").then_some(line)
}

/// HTTP 1.0, so that the answer comes in one piece and ends with the connection.
fn http_get(addr: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = connect(addr)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}
