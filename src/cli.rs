//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Settings;

/// Kubernetes in one small program, with its own container runtime and service proxy
#[derive(Parser)]
#[command(
    name = "knarr",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine: the control plane and one node
    Up(Run),
    /// Run the control plane
    Server(Run),
    /// Run a node of an existing cluster
    Node(Node),
    /// Look after the images of this machine
    Image(Image),
    /// Look after the tokens with which nodes join
    Token(Token),
    /// Print the administrator's kubeconfig
    Kubeconfig(Run),
    /// Print the version
    Version,
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// A configuration: flags, and a file below them.
#[derive(Args)]
pub struct Run {
    /// A YAML file with any of these settings, under the same names
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings
    #[command(flatten)]
    pub settings: Settings,
}

/// `knarr node`.
#[derive(Args)]
pub struct Node {
    /// The API server: https://HOST:6443
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// The join token that `knarr token create` printed on the server; needed the first time only
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The rest of the configuration
    #[command(flatten)]
    pub run: Run,
}

/// `knarr image`.
#[derive(Args)]
pub struct Image {
    /// What to do with the images
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// The commands of `knarr image`.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Import an OCI layout (directory or tar) or a docker archive
    Import {
        /// The file or directory; `-` for standard input
        from: String,
        /// The configuration, for the directories
        #[command(flatten)]
        run: Run,
    },
    /// Pull an image from its registry
    Pull {
        /// The image's name
        reference: String,
        /// Who we are to the registry
        #[command(flatten)]
        credentials: Credentials,
        /// The configuration, for the directories
        #[command(flatten)]
        run: Run,
    },
    /// List the images
    Ls {
        /// The configuration, for the directories
        #[command(flatten)]
        run: Run,
    },
    /// Remove images
    Rm {
        /// Names, ids or digests
        #[arg(required = true)]
        images: Vec<String>,
        /// The configuration, for the directories
        #[command(flatten)]
        run: Run,
    },
}

/// Who we are to a registry.
#[derive(Args)]
pub struct Credentials {
    /// The user and the password for the registry
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with = "authfile")]
    pub creds: Option<String>,
    /// The file with the registries' logins [default: $REGISTRY_AUTH_FILE, or where podman login and docker login leave theirs]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

/// `knarr token`.
#[derive(Args)]
pub struct Token {
    /// What to do with the tokens
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The commands of `knarr token`.
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token with which nodes join the cluster, and print it
    Create {
        /// How long it is valid, such as 30m or 24h; 0 for ever
        #[arg(long, default_value = "24h")]
        ttl: String,
        /// The configuration, for the directories
        #[command(flatten)]
        run: Run,
    },
}
