//! Probes: is a container started, ready, alive?

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use knarr_engine::types::ContainerId;
use tokio::sync::mpsc;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::grpc_check;
use crate::http_check;
use crate::panics;
use crate::runtime::{RuntimeError, chain};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    /// The name as messages write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    /// The container's probe of this purpose.
    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// A probe changed its mind.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    pub(crate) purpose: Purpose,
    pub(crate) passed: bool,
}

/// Counts results until a threshold is reached: a pure state machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    successes_needed: i32,
    failures_needed: i32,
    last: Option<bool>,
    run: i32,
    told: Option<bool>,
}

impl Tally {
    /// `initial` is what holds before the first result.
    pub(crate) fn new(probe: &Probe, initial: Option<bool>) -> Self {
        Self {
            successes_needed: probe.success_threshold.unwrap_or(1).max(1),
            failures_needed: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            run: 0,
            told: initial,
        }
    }

    /// Takes one result; returns the verdict if it changed.
    pub(crate) fn add(&mut self, passed: bool) -> Option<bool> {
        if self.last == Some(passed) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(passed);
            self.run = 1;
        }
        let needed = if passed {
            self.successes_needed
        } else {
            self.failures_needed
        };
        if self.run < needed || self.told == Some(passed) {
            return None;
        }
        self.told = Some(passed);
        Some(passed)
    }
}

/// One probe of one running container.
pub(crate) struct Subject {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) id: ContainerId,
    pub(crate) pod_ip: Option<IpAddr>,
    pub(crate) started_at: SystemTime,
    pub(crate) purpose: Purpose,
    /// What holds before the first result.
    pub(crate) initial: Option<bool>,
}

impl Subject {
    /// Probes until it is dropped, or until a result that nothing can follow.
    pub(crate) async fn run(self, verdicts: mpsc::Sender<Verdict>) {
        let Some(probe) = self.purpose.of(&self.container) else {
            return;
        };
        let seconds = |value: Option<i32>, default: i32| {
            Duration::from_secs(u64::try_from(value.unwrap_or(default).max(0)).unwrap_or(0))
        };
        let delay = seconds(probe.initial_delay_seconds, 0);
        let age = SystemTime::now()
            .duration_since(self.started_at)
            .unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let mut ticks =
            tokio::time::interval(seconds(probe.period_seconds, 10).max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tally = Tally::new(probe, self.initial);
        loop {
            ticks.tick().await;
            let result = panics::caught(self.check(probe, timeout))
                .await
                .unwrap_or_else(|message| Err(Miss::unknown(message)));
            if let Ok(Some(warning)) = &result {
                self.ctx.events.pod(
                    &self.pod,
                    Some(&self.container.name),
                    Severity::Warning,
                    "ProbeWarning",
                    format!("{} probe warning: {warning}", self.purpose.name()),
                );
            }
            if let Err(Miss::Failed(message) | Miss::Unknown(message)) = &result {
                self.ctx.events.pod(
                    &self.pod,
                    Some(&self.container.name),
                    Severity::Warning,
                    "Unhealthy",
                    format!("{} probe {message}", self.purpose.name()),
                );
            }
            // A probe that could not be made says nothing about the container.
            if matches!(result, Err(Miss::Unknown(_))) {
                continue;
            }
            let Some(passed) = tally.add(result.is_ok()) else {
                continue;
            };
            let verdict = Verdict {
                container: self.container.name.clone(),
                id: self.id.clone(),
                purpose: self.purpose,
                passed,
            };
            if verdicts.send(verdict).await.is_err() {
                return;
            }
            // A started container is not asked again; a condemned one is not either.
            if self.purpose != Purpose::Readiness && (self.purpose == Purpose::Startup || !passed) {
                return;
            }
        }
    }

    /// One attempt: a success may have a warning, an error has the words of its event.
    async fn check(&self, probe: &Probe, timeout: Duration) -> Result<Option<String>, Miss> {
        if let Some(exec) = &probe.exec {
            self.exec(exec.command.clone().unwrap_or_default(), timeout)
                .await
                .map(|()| None)
        } else if let Some(get) = &probe.http_get {
            let target =
                http_check::target(get, &self.container, self.pod_ip).map_err(Miss::unknown)?;
            let (status, body) = http_check::get(&target, timeout)
                .await
                .map_err(Miss::failed)?;
            match status {
                200..300 => Ok(None),
                // Redirects within the host have been followed.
                300..400 => Ok(Some(format!(
                    "Probe terminated redirects, Response body: {body}"
                ))),
                _ => Err(Miss::failed(format!(
                    "HTTP probe failed with statuscode: {status}"
                ))),
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = self.host(tcp.host.as_deref());
            let port = http_check::port(&self.container, &tcp.port).map_err(Miss::unknown)?;
            match tokio::time::timeout(timeout, http_check::connect(&host, port)).await {
                Ok(Ok(_)) => Ok(None),
                Ok(Err(error)) => Err(Miss::failed(error)),
                Err(_) => Err(Miss::failed(format!("dial tcp {host}:{port}: i/o timeout"))),
            }
        } else if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|e| Miss::unknown(e.to_string()))?;
            let service = grpc.service.as_deref().unwrap_or_default();
            grpc_check::check(&self.host(None), port, service, timeout)
                .await
                .map(|()| None)
                .map_err(Miss::failed)
        } else {
            Err(Miss::unknown("missing probe handler".to_owned()))
        }
    }

    fn host(&self, wanted: Option<&str>) -> String {
        match wanted.filter(|h| !h.is_empty()) {
            Some(host) => host.to_owned(),
            None => self.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }

    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Result<(), Miss> {
        let text = command.join(" ");
        let timed_out = || {
            Miss::failed(format!(
                "command timed out: {text:?} timed out after {}s",
                timeout.as_secs()
            ))
        };
        let run = self.ctx.runtime.exec_sync(&self.id, command, Some(timeout));
        // The runtime ends the command in time; the second timer is for a runtime that hangs.
        let output = match tokio::time::timeout(timeout + Duration::from_secs(5), run).await {
            Ok(Ok(output)) => output,
            Ok(Err(RuntimeError::Timeout)) | Err(_) => return Err(timed_out()),
            Ok(Err(error)) => return Err(Miss::unknown(chain(&error))),
        };
        if output.exit_code == 0 {
            return Ok(());
        }
        let mut said = output.stdout;
        said.extend(output.stderr);
        said.truncate(10 * 1024);
        Err(Miss::failed(String::from_utf8_lossy(&said).into_owned()))
    }
}

/// An attempt that was no success, in the words of its event.
enum Miss {
    /// The container is not well.
    Failed(String),
    /// The attempt itself went wrong.
    Unknown(String),
}

impl Miss {
    fn failed(message: String) -> Self {
        Self::Failed(format!("failed: {message}"))
    }

    fn unknown(message: String) -> Self {
        Self::Unknown(format!("errored and resulted in unknown state: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_only_at_its_threshold() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        let mut tally = Tally::new(&probe, Some(false));
        let results = [
            true, false, true, true, false, false, true, false, false, false, false,
        ];
        let got: Vec<Option<bool>> = results.into_iter().map(|r| tally.add(r)).collect();
        let expected = [
            None,
            None,
            None,
            Some(true),
            None,
            None,
            None,
            None,
            None,
            Some(false),
            None,
        ];
        assert_eq!(got, expected);
    }
}
