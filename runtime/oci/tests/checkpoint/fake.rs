//! A criu of our own, which speaks its protocol and simulates what it does: so that our side of the conversation is tested
//! where no criu works. It is this test program, run again as one of its tests.

use std::ffi::CString;
use std::fs;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use knarr_oci::sys::{self, Fork};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use prost::Message;

use crate::support::Case;

#[path = "../../src/runtime/criu/wire.rs"]
pub mod wire;

use wire::{Features, Notify, Request, Response, Restored, ask};

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All well.
    Works,
    /// All well, and the restored program ends with 7.
    Exits,
    /// All well, and there is a terminal.
    Terminal,
    /// It writes an error to its log and says no.
    Refuses,
    /// It dies without a word, after the process was made.
    Dies,
    /// It is not able to track memory.
    Poor,
}

/// Where the fake keeps what it was told.
pub struct Fake {
    directory: PathBuf,
    pub program: PathBuf,
}

impl Fake {
    pub fn new(case: &Case, mode: Mode) -> Self {
        let directory = case.path("fake");
        fs::create_dir_all(&directory).expect("directory");
        fs::write(directory.join("mode"), format!("{mode:?}")).expect("mode");
        let program = directory.join("criu");
        let test = std::env::current_exe().expect("own path");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = swrk ] || exit 9\nexport FAKE_CRIU_SOCKET=$2 FAKE_CRIU_DIRECTORY={}\nexec {} --exact checkpoint::fake::criu --nocapture --test-threads 1\n",
            directory.display(),
            test.display()
        );
        fs::write(&program, script).expect("script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        Self { directory, program }
    }

    /// The requests that it got, in order.
    pub fn requests(&self) -> Vec<Request> {
        let bytes = fs::read(self.directory.join("requests")).unwrap_or_default();
        let mut rest = bytes.as_slice();
        let mut requests = Vec::new();
        while !rest.is_empty() {
            requests.push(Request::decode_length_delimited(&mut rest).expect("a request"));
        }
        requests
    }

    /// What the descriptors that it could pass on lead to, as its process saw them.
    pub fn seen(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }
}

/// Run as criu, it serves until its caller hangs up. Run as a test, it sees that such a process answers and then ends.
#[test]
fn criu() {
    let Ok(socket) = std::env::var("FAKE_CRIU_SOCKET") else {
        return answers_and_ends();
    };
    let socket: RawFd = socket.parse().expect("a number");
    let directory = PathBuf::from(std::env::var_os("FAKE_CRIU_DIRECTORY").expect("a directory"));
    let mode = fs::read_to_string(directory.join("mode")).expect("mode");
    let socket = sys::inherited_fd(socket).expect("the socket");
    while let Some(request) = receive(&socket) {
        record(&directory, &request);
        serve(&socket, &directory, &mode, &request);
    }
}

fn answers_and_ends() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let case = Case::command(&["/bin/true"]);
    let fake = Fake::new(&case, Mode::Works);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, criu) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .expect("a pair of sockets");
    let mut child = std::process::Command::new(&fake.program)
        .args(["swrk", "0"])
        .stdin(criu)
        .spawn()
        .expect("start the fake");
    let question = Request {
        kind: ask::FEATURE_CHECK,
        features: Some(Features::default()),
        ..Request::default()
    };
    let sent = nix::sys::socket::send(
        ours.as_raw_fd(),
        &question.encode_to_vec(),
        MsgFlags::MSG_NOSIGNAL,
    );
    sent.expect("ask");
    let mut buffer = vec![0; 1 << 16];
    let length = recv(ours.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("an answer");
    let answer = Response::decode(&buffer[..length]).expect("a response");
    assert!(answer.success);
    drop(ours);
    assert!(child.wait().expect("wait for the fake").success());
    assert_eq!(fake.requests().len(), 1);
}

fn serve(socket: &OwnedFd, directory: &Path, mode: &str, request: &Request) {
    let answer = |success| Response {
        kind: request.kind,
        success,
        ..Response::default()
    };
    if request.kind == ask::FEATURE_CHECK {
        let able = request.features.unwrap_or_default();
        let able = if mode == "Poor" {
            Features::default()
        } else {
            able
        };
        let features = Some(able);
        return send(
            socket,
            &Response {
                features,
                ..answer(true)
            },
            None,
        );
    }
    let options = request.opts.as_ref().expect("options");
    if mode == "Refuses" {
        let fd = options.work_dir_fd.unwrap_or(options.images_dir_fd);
        // As criu finds it: the numbers are those of the process that made the socket.
        let maker =
            nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials);
        let maker = maker.expect("who made the socket").pid();
        let log = format!("/proc/{maker}/fd/{fd}/{}", options.log_file());
        let text = "(00.000001) Version: 0\n(00.000002)    1: Error (criu/fake.c:7): it does not want to\n(00.000003) end\n";
        fs::write(log, text).expect("write the log");
        let refused = Response {
            cr_errno: Some(17),
            ..answer(false)
        };
        return send(socket, &refused, None);
    }
    if request.kind == ask::RESTORE {
        let pid = restore(socket, directory, mode, options);
        let restore = Some(Restored { pid });
        return send(
            socket,
            &Response {
                restore,
                ..answer(true)
            },
            None,
        );
    }
    notify(socket, "network-lock", 0, None);
    if request.kind == ask::DUMP && options.leave_running != Some(true) {
        let pid = nix::unistd::Pid::from_raw(options.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    }
    send(socket, &answer(true), None);
}

fn restore(socket: &OwnedFd, directory: &Path, mode: &str, options: &wire::Options) -> i32 {
    let root = options.root();
    let listed = fs::read_dir(root).expect("the root").flatten();
    let names: Vec<String> = listed
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    fs::write(directory.join("root"), names.join("\n")).expect("write");
    let own = fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    fs::write(directory.join("cgroup"), own).expect("write");
    let passed: Vec<String> = options
        .inherit_fd
        .iter()
        .map(|one| {
            let link = fs::read_link(format!("/proc/self/fd/{}", one.fd)).expect("a descriptor");
            format!("{} {}", one.key, link.display())
        })
        .collect();
    fs::write(directory.join("passed"), passed.join("\n")).expect("write");

    let script = if mode == "Exits" {
        "exit 7"
    } else {
        "exec sleep 1000"
    };
    let args = ["sh", "-c", script].map(|arg| CString::new(arg).expect("no NUL"));
    let env = [c"PATH=/bin:/usr/bin".to_owned()];
    // As rst_sibling says: a child of whoever runs criu.
    let parent = nix::libc::CLONE_PARENT as u64;
    let pid = match sys::clone3(parent, None).expect("make a process") {
        Fork::Child => {
            sys::execve(c"/bin/sh", &args, &env);
            sys::exit_now(1);
        }
        Fork::Parent { pid, .. } => pid.as_raw(),
    };
    fs::write(directory.join("pid"), pid.to_string()).expect("write");
    notify(socket, "setup-namespaces", pid, None);
    if mode == "Dies" {
        sys::exit_now(3);
    }
    if mode == "Terminal" {
        let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR).expect("a terminal");
        notify(socket, "orphan-pts-master", 0, Some(master.as_fd()));
    }
    notify(socket, "post-restore", pid, None);
    pid
}

fn notify(socket: &OwnedFd, script: &str, pid: i32, fd: Option<BorrowedFd<'_>>) {
    let notify = Notify {
        script: Some(script.to_owned()),
        pid: Some(pid),
    };
    let message = Response {
        kind: ask::NOTIFY,
        success: true,
        notify: Some(notify),
        ..Response::default()
    };
    send(socket, &message, fd);
    let reply = receive(socket).expect("a reply");
    assert_eq!(reply.kind, ask::NOTIFY);
    if reply.notify_success != Some(true) {
        // Real criu kills what it has made, and says no.
        sys::exit_now(1);
    }
}

fn record(directory: &Path, request: &Request) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("requests"))
        .expect("open");
    file.write_all(&request.encode_length_delimited_to_vec())
        .expect("write");
}

fn receive(socket: &OwnedFd) -> Option<Request> {
    let mut buffer = vec![0; 1 << 20];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
    (length > 0).then(|| Request::decode(&buffer[..length]).expect("a request"))
}

fn send(socket: &OwnedFd, response: &Response, fd: Option<BorrowedFd<'_>>) {
    let bytes = response.encode_to_vec();
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let slices = [IoSlice::new(&bytes)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .expect("send");
}
