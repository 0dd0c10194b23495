//! The command line: arguments to calls of the library, results to output and exit codes.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use knarr_oci::{CgroupManager, ContainerId, Runtime, RuntimeOptions};

mod attend;
mod checkpoint;
mod container;
mod descriptors;
mod exec;
mod features;
mod log;
#[cfg(test)]
mod man;
mod query;
mod spec;
#[cfg(not(test))]
mod sys;
mod systemd;
mod update;

use log::{Format, Log};

/// Runs containers by the Open Container Initiative's runtime specification.
#[derive(Debug, Parser)]
#[command(
    name = "knarr-oci",
    disable_version_flag = true,
    subcommand_required = false,
    arg_required_else_help = false,
    args_override_self = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Print the version and exit.
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Args)]
struct Global {
    /// Directory of the containers' state, on a tmpfs; /run/knarr-oci, or of this name in an ordinary user's
    /// $XDG_RUNTIME_DIR.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File to append messages to, instead of standard error.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of messages in that file.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: Format,
    /// Write more messages.
    #[arg(long)]
    debug: bool,
    /// Make control groups through systemd.
    #[arg(long)]
    systemd_cgroup: bool,
    /// Control groups through `cgroupfs` or `systemd`, or none at all (as crun spells it).
    #[arg(long, value_enum, value_name = "MANAGER", hide = true)]
    cgroup_manager: Option<Manager>,
    /// Whether to go on without cgroups where none may be made.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    rootless: Rootless,
    /// The criu program, if it is not in $PATH.
    #[arg(long, value_name = "FILE")]
    criu: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a container; its program waits for start.
    Create(container::Create),
    /// Let a created container's program run.
    Start(container::Id),
    /// Make a container, start it, and wait for its end.
    Run(container::Run),
    /// Print a container's state as JSON.
    State(container::Id),
    /// Send a signal to a container.
    Kill(container::Kill),
    /// Remove what is left of a container.
    Delete(container::Delete),
    /// Run one more process in a container.
    Exec(Box<exec::Exec>),
    /// List containers.
    List(query::List),
    /// List a container's processes.
    Ps(query::Ps),
    /// Stop a container's processes as they are.
    Pause(container::Id),
    /// Let them go on.
    Resume(container::Id),
    /// Change a container's limits.
    Update(Box<update::Update>),
    /// Print what a container uses.
    Events(query::Events),
    /// Write an example configuration.
    Spec(spec::Spec),
    /// Print what this runtime can do, as JSON.
    Features,
    /// Save a running container with criu.
    Checkpoint(Box<checkpoint::Checkpoint>),
    /// Make a container of what was saved.
    Restore(Box<checkpoint::Restore>),
    /// Print a shell's completion script.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What every verb works with.
struct Context {
    runtime: Runtime,
    log: Log,
    /// The criu program, if it was named.
    criu: Option<PathBuf>,
    /// How many descriptors from 3 on are the caller's.
    inherited: u32,
}

/// crun's words.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Manager {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// runc's words.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Rootless {
    True,
    False,
    /// If the caller is not root.
    Auto,
}

impl Global {
    fn root(&self) -> PathBuf {
        let name = "knarr-oci";
        let of_user = || {
            let directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?;
            (!nix::unistd::geteuid().is_root()).then(|| PathBuf::from(directory).join(name))
        };
        let chosen = self.root.clone().or_else(of_user);
        chosen.unwrap_or_else(|| PathBuf::from("/run").join(name))
    }

    fn runtime(&self, no_pivot: bool, no_new_keyring: bool) -> Runtime {
        let named = self.cgroup_manager.unwrap_or(Manager::Cgroupfs);
        let cgroup_manager = match named {
            Manager::Disabled => CgroupManager::Disabled,
            Manager::Systemd => CgroupManager::Systemd,
            Manager::Cgroupfs if self.systemd_cgroup => CgroupManager::Systemd,
            Manager::Cgroupfs => CgroupManager::Cgroupfs,
        };
        let options = RuntimeOptions {
            cgroup_manager,
            rootless: match self.rootless {
                Rootless::True => Some(true),
                Rootless::False => Some(false),
                Rootless::Auto => None,
            },
            systemd: Some(&systemd::Bus),
            no_pivot,
            no_new_keyring,
            seccomp_cache: None,
        };
        Runtime::new(self.root(), options)
    }
}

/// Parses the arguments, does what they say, and tells what went wrong. Gives the exit code.
///
/// `inherited` descriptors from 3 on are the caller's.
#[cfg_attr(test, expect(dead_code, reason = "called by the program's entry"))]
fn main(inherited: u32) -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before anything else, because it starts anew. What goes wrong here is told below.
    let makes = |arg: &OsString| ["create", "run", "exec"].iter().any(|verb| arg == verb);
    let protected = args.iter().any(makes) && knarr_oci::protect::run_read_only().is_ok();
    let parsed = parse_usual(&args).map_or_else(|| parse(&args), Ok);
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // To standard error, or for --help to standard output; if that fails there is nobody to tell.
            let _unprinted = error.print();
            if let Some(flag) = without_value(&error) {
                // Podman asks `restore --lsm-mount-context` for these words before it restores into a pod.
                eprintln!("flag needs an argument: {flag}");
            }
            log_misuse(&args, &error);
            // runc says 1, not clap's 2.
            return u8::from(error.use_stderr());
        }
    };
    if cli.version {
        print!("{}", version());
        return 0;
    }
    let log = match Log::open(
        cli.global.log.as_deref(),
        cli.global.log_format,
        cli.global.debug,
    ) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("knarr-oci: open the log: {error}");
            return 1;
        }
    };
    let Some(verb) = cli.verb else {
        // Help that was not asked for is an error, but runc prints it and succeeds.
        let _unprinted = Cli::command().print_help();
        return 0;
    };
    let failure = verb.failure_code();
    match run(&cli.global, verb, &log, protected, inherited) {
        Ok(code) => code,
        Err(error) => {
            log.error(&format!("{error:#}"));
            failure
        }
    }
}

/// containerd writes one flag of restore with one dash, which Go's parsers take.
fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(args).or_else(|error| {
        let (one, two) = (OsStr::new("-no-subreaper"), OsStr::new("--no-subreaper"));
        if !args.iter().any(|arg| arg == "restore") || !args.iter().any(|arg| arg == one) {
            return Err(error);
        }
        let mend = |arg: &OsString| if arg == one { two.into() } else { arg.clone() };
        Cli::try_parse_from(args.iter().map(mend))
    })
}

/// Callers that were told of a failure read why in the log. As with runc: if the log's own flags can be understood.
fn log_misuse(args: &[OsString], error: &clap::Error) {
    let Some((global, _)) = globals(args).filter(|_| error.use_stderr()) else {
        return;
    };
    match Log::open(global.log.as_deref(), global.log_format, global.debug) {
        Ok(log) => log.misuse(&what_is_wrong(error)),
        Err(error) => eprintln!("knarr-oci: open the log: {error}"),
    }
}

/// clap's message in one line, without its hints.
fn what_is_wrong(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = message.trim_start_matches("error: ");
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The flags before the verb, and the verb with what follows it as they are.
fn globals(args: &[OsString]) -> Option<(Global, clap::ArgMatches)> {
    let command = clap::Command::new("knarr-oci").allow_external_subcommands(true);
    let top = Global::augment_args(command)
        .try_get_matches_from(args)
        .ok()?;
    Some((Global::from_arg_matches(&top).ok()?, top))
}

/// The flag that was given without its value, if that is what is wrong.
fn without_value(error: &clap::Error) -> Option<String> {
    let value = error.get(ContextKind::InvalidValue);
    let empty = matches!(value, Some(ContextValue::String(value)) if value.is_empty());
    let flag = error.get(ContextKind::InvalidArg)?.to_string();
    (error.kind() == ErrorKind::InvalidValue && empty).then_some(flag)
}

/// The verbs of the life cycle, without mistakes in the arguments: then only the parser of that one verb is made, instead
/// of those of all. `None` leaves the arguments, and what is to be said of them, to [`Cli`].
fn parse_usual(args: &[OsString]) -> Option<Cli> {
    let (global, top) = globals(args)?;
    let (name, rest) = top.subcommand()?;
    let rest = rest.get_many::<OsString>("").unwrap_or_default();
    let verb = match name {
        "create" => Verb::Create(parse_one(rest)?),
        "start" => Verb::Start(parse_one(rest)?),
        "run" => Verb::Run(parse_one(rest)?),
        "state" => Verb::State(parse_one(rest)?),
        "kill" => Verb::Kill(parse_one(rest)?),
        "delete" => Verb::Delete(parse_one(rest)?),
        "exec" => Verb::Exec(Box::new(parse_one(rest)?)),
        _ => return None,
    };
    Some(Cli {
        global,
        version: false,
        verb: Some(verb),
    })
}

/// The name counts in messages only, and these are left to the whole parser.
fn parse_one<'a, T: Args>(rest: impl Iterator<Item = &'a OsString>) -> Option<T> {
    let command = T::augment_args(clap::Command::new("knarr-oci").no_binary_name(true));
    T::from_arg_matches(&command.try_get_matches_from(rest).ok()?).ok()
}

impl Verb {
    /// As with runc: a failed exec is told apart from a program that ended with 1.
    fn failure_code(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            _ => 1,
        }
    }

    fn makes_processes(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Run(_) | Self::Exec(_))
    }
}

fn run(
    global: &Global,
    verb: Verb,
    log: &Log,
    protected: bool,
    inherited: u32,
) -> anyhow::Result<u8> {
    if verb.makes_processes() && !protected {
        use anyhow::Context as _;
        knarr_oci::protect::run_read_only().context("run from a read-only mount")?;
    }
    // From here on nothing executes this program anew, and hooks and criu have no part in what the caller left open.
    knarr_oci::sys::close_range_cloexec(3)?;
    let (no_pivot, no_new_keyring) = match &verb {
        Verb::Create(create) => (create.no_pivot, create.no_new_keyring),
        Verb::Run(run) => (run.create.no_pivot, run.create.no_new_keyring),
        _ => (false, false),
    };
    let context = Context {
        runtime: global.runtime(no_pivot, no_new_keyring),
        log: log.clone(),
        criu: global.criu.clone(),
        inherited,
    };
    match verb {
        Verb::Create(create) => container::create(&context, &create),
        Verb::Start(id) => container::start(&context, &id),
        Verb::Run(run) => container::run(&context, &run),
        Verb::State(id) => query::state(&context, &id),
        Verb::Kill(kill) => container::kill(&context, &kill),
        Verb::Delete(delete) => container::delete(&context, &delete),
        Verb::Exec(exec) => exec::exec(&context, &exec),
        Verb::List(list) => query::list(&context, &list),
        Verb::Ps(ps) => query::ps(&context, &ps),
        Verb::Pause(id) => container::pause(&context, &id),
        Verb::Resume(id) => container::resume(&context, &id),
        Verb::Update(update) => update::update(&context, &update),
        Verb::Events(events) => query::events(&context, &events),
        Verb::Spec(spec) => spec::write(&spec),
        Verb::Features => features::print(),
        Verb::Checkpoint(args) => checkpoint::checkpoint(&context, &args),
        Verb::Restore(args) => checkpoint::restore(&context, &args),
        Verb::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "knarr-oci",
                &mut std::io::stdout(),
            );
            Ok(0)
        }
    }
}

/// In the form that containerd and Podman take apart.
fn version() -> String {
    let seccomp = libseccomp::ScmpVersion::current()
        .map(|version| format!("libseccomp: {version}\n"))
        .unwrap_or_default();
    format!(
        "knarr-oci version {}\nspec: {}\n{seccomp}",
        env!("CARGO_PKG_VERSION"),
        knarr_oci::state::OCI_VERSION
    )
}

fn parse_id(text: &str) -> Result<ContainerId, knarr_oci::id::InvalidId> {
    ContainerId::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(line: &str) -> Option<String> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse_usual(&args).map(|cli| format!("{cli:?}"))
    }

    fn whole(line: &str) -> Option<String> {
        Cli::try_parse_from(line.split(' '))
            .ok()
            .map(|cli| format!("{cli:?}"))
    }

    /// Whatever the short way takes, it takes as the whole parser does.
    #[test]
    fn the_usual_verbs_mean_the_same_on_the_short_way() {
        for line in [
            "knarr-oci run one",
            "knarr-oci --root /r --log /l --log-format json run -b /b --pid-file=/p --detach one",
            "knarr-oci --systemd-cgroup create --bundle /b --no-pivot --preserve-fds 2 one",
            "knarr-oci start one",
            "knarr-oci state one",
            "knarr-oci kill -a one KILL",
            "knarr-oci kill one",
            "knarr-oci delete -f one",
            "knarr-oci exec -t --env A=1 -e B=2 one sh -c ls --help",
            "knarr-oci exec --cap CAP_KILL -- one ls -l",
            "knarr-oci exec --process /p one",
        ] {
            assert!(usual(line).is_some(), "{line}");
            assert_eq!(usual(line), whole(line), "{line}");
        }
    }

    #[test]
    fn mistakes_and_help_are_left_to_the_whole_parser() {
        for line in [
            "knarr-oci",
            "knarr-oci --version",
            "knarr-oci --help",
            "knarr-oci run",
            "knarr-oci run --help",
            "knarr-oci run --root /r one",
            "knarr-oci run one two",
            "knarr-oci run ../one",
            "knarr-oci exec -h one",
            "knarr-oci nonsense one",
            "knarr-oci list",
        ] {
            assert_eq!(usual(line), None, "{line}");
        }
    }
}
