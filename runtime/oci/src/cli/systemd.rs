//! Talking to systemd over D-Bus, for `--systemd-cgroup`. Nothing of it runs otherwise.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use knarr_oci::cgroup::systemd::{Property, Scope, Systemd, SystemdError, Unit};
use zbus::connection::Builder;
use zbus::export::futures_core::Stream as _;
use zbus::zvariant::Variant;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

/// The host's systemd on the system bus, or the user's on the session bus.
#[derive(Debug)]
pub(super) struct Bus;

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// As long as systemd itself takes for one call.
const PATIENCE: Duration = Duration::from_secs(25);

type Properties<'a> = Vec<(&'a str, Variant<'a>)>;

impl Systemd for Bus {
    fn start(&self, unit: &Unit) -> Result<PathBuf, SystemdError> {
        zbus::block_on(start(unit))
    }

    fn stop(&self, scope: &Scope) -> Result<(), SystemdError> {
        zbus::block_on(async {
            let bus = connect(scope.user).await?;
            let body = (scope.name.as_str(), "replace");
            let stopped = call(&bus, "StopUnit", &body).await;
            forgive(stopped, NO_SUCH_UNIT, || format!("stop {}", scope.name))?;
            reset(&bus, scope).await
        })
    }

    fn set(&self, scope: &Scope, properties: &[(String, Property)]) -> Result<(), SystemdError> {
        zbus::block_on(async {
            let bus = connect(scope.user).await?;
            let body = (scope.name.as_str(), true, variants(properties));
            let set = call(&bus, "SetUnitProperties", &body).await;
            set.map(drop)
                .map_err(failed(|| format!("set properties of {}", scope.name)))
        })
    }
}

async fn start(unit: &Unit) -> Result<PathBuf, SystemdError> {
    let name = unit.scope.name.as_str();
    let what = || format!("start {name}");
    let bus = connect(unit.scope.user).await?;
    // From before the call on, so that its end cannot be missed.
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(SERVICE)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()
        .map_err(failed(what))?;
    let mut jobs = MessageStream::for_match_rule(rule, &bus, None)
        .await
        .map_err(failed(what))?;
    call(&bus, "Subscribe", &()).await.map_err(failed(what))?;
    let group = if unit.scope.user {
        let body = (MANAGER, "ControlGroup");
        let answer = bus
            .call_method(
                Some(SERVICE),
                PATH,
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &body,
            )
            .await
            .map_err(failed(what))?;
        let body = answer.body();
        let value: Variant<'_> = body.deserialize().map_err(failed(what))?;
        let text = String::try_from(value).map_err(failed(what))?;
        PathBuf::from(text)
    } else {
        PathBuf::from("/")
    };
    let auxiliary: Vec<(&str, Properties<'_>)> = Vec::new();
    let body = (name, "replace", variants(&unit.properties), auxiliary);
    let answer = match call(&bus, "StartTransientUnit", &body).await {
        Err(error) if is(&error, UNIT_EXISTS) => {
            // One that failed stays until somebody says that he has seen it.
            reset(&bus, &unit.scope).await?;
            call(&bus, "StartTransientUnit", &body).await
        }
        answered => answered,
    };
    let answer = answer.map_err(failed(what))?;
    let job: OwnedObjectPath = answer.body().deserialize().map_err(failed(what))?;
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut jobs).poll_next(context)).await;
        let Some(message) = next else {
            return Err(SystemdError::Job {
                unit: name.to_owned(),
                result: "the bus closed the connection".to_owned(),
            });
        };
        let message = message.map_err(failed(what))?;
        let body = message.body();
        let removed: (u32, OwnedObjectPath, String, String) =
            body.deserialize().map_err(failed(what))?;
        if removed.1 == job {
            if removed.3 == "done" {
                return Ok(group);
            }
            // So that the name is free again; the result is the error to tell.
            let _kept = reset(&bus, &unit.scope).await;
            return Err(SystemdError::Job {
                unit: name.to_owned(),
                result: removed.3,
            });
        }
    }
}

async fn connect(user: bool) -> Result<Connection, SystemdError> {
    let builder = if user {
        Builder::session()
    } else {
        Builder::system()
    };
    let connected = builder.method_timeout(PATIENCE).build().await;
    connected.map_err(|source| SystemdError::Connect {
        source: source.into(),
    })
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(SERVICE), PATH, Some(MANAGER), method, body)
        .await
}

async fn reset(bus: &Connection, scope: &Scope) -> Result<(), SystemdError> {
    let done = call(bus, "ResetFailedUnit", &(scope.name.as_str(),)).await;
    forgive(done, NO_SUCH_UNIT, || format!("reset {}", scope.name))
}

fn forgive(
    done: zbus::Result<zbus::Message>,
    expected: &str,
    what: impl FnOnce() -> String,
) -> Result<(), SystemdError> {
    match done {
        Err(error) if is(&error, expected) => Ok(()),
        done => done.map(drop).map_err(failed(what)),
    }
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(known, _, _) if known.as_str() == name)
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: impl FnOnce() -> String,
) -> impl FnOnce(E) -> SystemdError {
    move |source| SystemdError::Call {
        what: format!("ask systemd to {}", what()),
        source: source.into(),
    }
}

fn variants(properties: &[(String, Property)]) -> Properties<'_> {
    let all = properties.iter();
    all.map(|(name, value)| (name.as_str(), variant(value)))
        .collect()
}

fn variant(value: &Property) -> Variant<'_> {
    match value {
        Property::Bool(value) => Variant::Bool(*value),
        Property::Int32(value) => Variant::I32(*value),
        Property::Int64(value) => Variant::I64(*value),
        Property::Uint32(value) => Variant::U32(*value),
        Property::Uint64(value) => Variant::U64(*value),
        Property::Double(value) => Variant::F64(*value),
        Property::Text(value) => Variant::from(value.as_str()),
        Property::Texts(values) => Variant::from(values.clone()),
        Property::Bytes(values) => Variant::from(values.clone()),
        Property::Numbers(values) => Variant::from(values.clone()),
    }
}
