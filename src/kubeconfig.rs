//! The administrator's kubeconfig: written by the server, used by the commands that talk to it.

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::config::Config;

/// A client with the administrator's identity, and the cluster's CA certificate.
///
/// # Errors
///
/// If there is no kubeconfig (no server has run here yet), or it is not whole.
pub async fn admin_client(config: &Config) -> anyhow::Result<(kube::Client, String)> {
    let path = &config.own_kubeconfig();
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| {
        format!(
            "read {}: has `knarr up` or `knarr server` run here?",
            path.display()
        )
    })?;
    let options = KubeConfigOptions::default();
    let client_config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("use {}", path.display()))?;
    let ca = client_config
        .root_cert
        .as_ref()
        .and_then(|certificates| certificates.first())
        .with_context(|| format!("{} holds no CA certificate", path.display()))?
        .clone();
    let client = kube::Client::try_from(client_config).context("make a client")?;
    Ok((client, knarr_api::pki::certificate_pem(&ca)))
}

/// Prints the administrator's kubeconfig.
///
/// # Errors
///
/// If it cannot be read.
pub fn print(config: &Config) -> anyhow::Result<()> {
    let path = &config.own_kubeconfig();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "read {}: has `knarr up` or `knarr server` run here?",
            path.display()
        )
    })?;
    print!("{text}");
    Ok(())
}
