//! An API server by itself, for trying it with kubectl: `cargo run -p knarr-api --example serve -- DIR [ADDRESS:PORT]`.

use std::path::PathBuf;
use std::sync::Arc;

use knarr_api::pki::{self, Pki, Purpose};
use knarr_api::{ApiServer, ApiServerConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: serve DIR [ADDRESS:PORT]")?);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    std::fs::create_dir_all(&dir)?;
    let pki = Pki::open(&dir.join("tls"))?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    let config = ApiServerConfig {
        advertise: listener.local_addr()?,
        ..ApiServerConfig::default()
    };
    let url = format!("https://{}", config.advertise);
    let store = Arc::new(knarr_store::RedbStore::open(&dir.join("state.redb"))?);
    let server = ApiServer::open(config, store, &pki).await?;
    let admin = Purpose::Client {
        user: "admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
    };
    let identity = pki.identity("admin", &admin)?;
    let kubeconfig = dir.join("admin.kubeconfig");
    pki::write(
        &kubeconfig,
        &pki::kubeconfig("knarr", &url, pki.ca_cert_pem(), "admin", &identity),
        0o600,
    )?;
    println!("{url}; export KUBECONFIG={}", kubeconfig.display());
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.cancel();
        }
    });
    server.serve(listener, stop).await?;
    Ok(())
}
