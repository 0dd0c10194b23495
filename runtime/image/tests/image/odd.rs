//! Pulls from registries with manners of their own, and from hostile ones.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use knarr_image::{Auth, ContentError, ImageStore, PullError, Reference, RegistryError};

use crate::build::{Archive, Compression, Layout, TestImage};
use crate::import::store;
use crate::odd_registry::{How, Registry, Request, Response, State};

type Manner = Box<dyn Fn(&Request, &State) -> Response + Send + Sync>;

/// What no pull here may take longer than, by far.
const DEADLINE: Duration = Duration::from_secs(60);

fn user() -> Auth {
    Auth::Basic {
        username: "user".to_owned(),
        password: "pass".to_owned(),
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("user:pass"))
}

/// Three layers, one of them long enough to be cut.
fn layout() -> Layout {
    let noise: Vec<u8> = (0..400_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let layer = |name: &str, content: &[u8]| Archive::new().file(name, content).finish();
    TestImage::new()
        .layer(layer("noise", &noise), Compression::None)
        .layer(layer("a", b"1"), Compression::Gzip)
        .layer(layer("b", b"2"), Compression::Zstd)
        .layout("v1")
}

async fn pull(registry: &Registry, auth: &Auth) -> Result<(), PullError> {
    let (_dir, store) = store();
    pull_into(&store, registry, auth).await
}

async fn pull_into(store: &ImageStore, registry: &Registry, auth: &Auth) -> Result<(), PullError> {
    let name: Reference = registry.name().parse().unwrap();
    let pulled = tokio::time::timeout(DEADLINE, store.pull(&name, auth));
    let image = pulled.await.expect("the pull ends")?;
    assert_eq!(image.layers.len(), 3);
    Ok(())
}

/// A token of this server, if the request shows the right user or if there needs to be none.
fn token(request: &Request, state: &State, anonymous: bool) -> Option<String> {
    let allowed = anonymous || request.authorization() == basic();
    allowed.then(|| format!("t{}-right", state.count("token")))
}

fn grant(token: &str) -> Response {
    Response::new(
        200,
        format!(r#"{{"token":"{token}","expires_in":null,"issued_at":null}}"#),
    )
}

fn bearer(state: &State, more: &str) -> String {
    format!(
        r#"Bearer realm="http://{}/token",service="{}"{more}"#,
        state.address, state.address
    )
}

fn refused(challenges: &[String]) -> Response {
    let mut response = Response::error(401, "UNAUTHORIZED");
    for challenge in challenges {
        response = response.with("WWW-Authenticate", challenge.clone());
    }
    response
}

/// Wants a token, in the words of `challenge`.
fn wants_token(
    challenge: impl Fn(&State) -> Vec<String> + Send + Sync + 'static,
) -> impl Fn(&Request, &State) -> Response + Send + Sync + 'static {
    move |request, state| {
        if request.path == "/token" {
            return token(request, state, false).map_or_else(|| refused(&[]), |t| grant(&t));
        }
        if request.authorization().starts_with("Bearer ")
            && request.authorization().ends_with("-right")
        {
            state.plain(request)
        } else {
            refused(&challenge(state))
        }
    }
}

#[tokio::test]
async fn every_way_to_ask_for_credentials_is_understood() {
    let layout = layout();
    let scope = r#",scope="repository:x/img:pull""#;
    let comma = r#"Basic realm="registry, with comma""#;
    type Challenge = Box<dyn Fn(&State) -> Vec<String> + Send + Sync>;
    let ways: Vec<(&str, Challenge)> = vec![
        ("one line", Box::new(move |s| vec![bearer(s, scope)])),
        ("no scope", Box::new(|s| vec![bearer(s, "")])),
        (
            "two lines",
            Box::new(move |s| vec![comma.to_owned(), bearer(s, scope)]),
        ),
        (
            "the other order",
            Box::new(move |s| vec![bearer(s, scope), comma.to_owned()]),
        ),
        (
            "one line with both",
            Box::new(move |s| vec![format!("{comma}, {}", bearer(s, scope))]),
        ),
        (
            "lower case",
            Box::new(move |s| vec![bearer(s, scope).replace("Bearer", "bearer")]),
        ),
        (
            "unknown beside it",
            Box::new(move |s| vec!["Negotiate".to_owned(), bearer(s, scope)]),
        ),
        (
            "an error",
            Box::new(move |s| vec![bearer(s, r#",scope="a b",error="invalid_token""#)]),
        ),
        (
            "relative realm",
            Box::new(|_| vec![r#"Bearer realm="/token""#.to_owned()]),
        ),
    ];
    for (way, challenge) in ways {
        let registry = Registry::start(&layout, wants_token(challenge));
        let result = pull(&registry, &user()).await;
        assert!(result.is_ok(), "{way}: {result:?}");
        let stranger = pull(&registry, &Auth::Anonymous).await;
        assert!(
            matches!(stranger, Err(PullError::Unauthorized { .. })),
            "{way}: {stranger:?}"
        );
    }
    // A password, asked for by whatever request comes first.
    let registry = Registry::start(&layout, move |request, state| {
        if request.authorization() == basic() {
            state.plain(request)
        } else {
            refused(&[comma.to_owned()])
        }
    });
    pull(&registry, &user()).await.unwrap();
    // Only blobs are private.
    let registry = Registry::start(&layout, move |request, state| {
        if request.is_manifest() || request.authorization() == basic() {
            state.plain(request)
        } else {
            refused(&[comma.to_owned()])
        }
    });
    pull(&registry, &user()).await.unwrap();
}

#[tokio::test]
async fn the_challenges_own_scope_and_the_realms_own_query_are_kept() {
    let registry = Registry::start(&layout(), |request, state| {
        if request.path == "/token" {
            let scope = request.parameter("scope").unwrap_or_default();
            let right = scope == "repository:real/name:pull"
                && request.parameter("svc").as_deref() == Some("extra");
            return grant(if right { "right" } else { "wrong" });
        }
        if request.authorization() == "Bearer right" {
            return state.plain(request);
        }
        let scope = r#",scope="repository:real/name:pull""#;
        refused(&[bearer(state, scope).replace("/token", "/token?svc=extra")])
    });
    pull(&registry, &Auth::Anonymous).await.unwrap();
}

#[tokio::test]
async fn tokens_have_two_names() {
    for body in [
        r#"{"access_token":"right"}"#,
        r#"{"token":"","access_token":"right","expires_in":60}"#,
        r#"{"token":"right","access_token":"right","expires_in":"60"}"#,
        r#"{"token":"right","access_token":null}"#,
    ] {
        let registry = Registry::start(&layout(), move |request, state| match request {
            r if r.path == "/token" => Response::new(200, body),
            r if r.authorization() == "Bearer right" => state.plain(r),
            _ => refused(&[bearer(state, "")]),
        });
        pull(&registry, &Auth::Anonymous)
            .await
            .unwrap_or_else(|err| panic!("{body}: {err:?}"));
    }
    for body in ["{}", "", r#"{"token":null}"#, r#"{"token":"a\nb"}"#, "[]"] {
        let registry = Registry::start(&layout(), move |request, state| match request {
            r if r.path == "/token" => Response::new(200, body),
            _ => refused(&[bearer(state, "")]),
        });
        let err = pull(&registry, &Auth::Anonymous).await.unwrap_err();
        let no_token = matches!(&err, PullError::Registry { source, .. } if matches!(**source, RegistryError::NoToken { .. }));
        assert!(no_token, "{body}: {err:?}");
    }
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_replaced() {
    // Good for two requests of any kind, or for one blob.
    for (manifests, most) in [(true, 2), (false, 1)] {
        let registry = Registry::start(&layout(), move |request, state| {
            if request.path == "/token" {
                return grant(&token(request, state, true).unwrap());
            }
            let shown = request.authorization().to_owned();
            let counts = manifests || request.is_blob();
            if shown.ends_with("-right") && (!counts || state.count(shown) <= most) {
                state.plain(request)
            } else {
                refused(&[bearer(state, r#",error="invalid_token""#)])
            }
        });
        pull(&registry, &Auth::Anonymous).await.unwrap();
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    for (status, retry_after) in [
        (429, Some("0")),
        (429, None),
        (503, Some("1")),
        (503, None),
        (502, None),
        (500, None),
    ] {
        for blobs in [false, true] {
            let registry = Registry::start(&layout(), move |request, state| {
                if request.is_blob() == blobs && state.count(&*request.path) == 1 {
                    let busy = Response::error(status, "TOOMANYREQUESTS");
                    match retry_after {
                        Some(seconds) => busy.with("Retry-After", seconds),
                        None => busy,
                    }
                } else {
                    state.plain(request)
                }
            });
            let result = pull(&registry, &Auth::Anonymous).await;
            assert!(
                result.is_ok(),
                "{status} {retry_after:?} {blobs}: {result:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_busy_token_server_is_asked_again() {
    let registry = Registry::start(&layout(), |request, state| match request {
        r if r.path == "/token" && state.count("busy") == 1 => Response::new(503, "busy"),
        r if r.path == "/token" => grant("right"),
        r if r.authorization() == "Bearer right" => state.plain(r),
        _ => refused(&[bearer(state, "")]),
    });
    pull(&registry, &Auth::Anonymous).await.unwrap();
}

#[tokio::test]
async fn storage_elsewhere_never_sees_the_credentials() {
    let layout = layout();
    let storage = Registry::start(&layout, |request, state| {
        if request.authorization().is_empty() {
            state.plain(request)
        } else {
            Response::new(400, "Only one auth mechanism allowed")
        }
    });
    let elsewhere = storage.address;
    for status in [301, 302, 303, 307, 308] {
        let registry = Registry::start(&layout, move |request, state| {
            if request.authorization() != basic() {
                return refused(&[r#"Basic realm="x""#.to_owned()]);
            }
            if request.is_blob() {
                let to = format!("http://{elsewhere}{}?signature=secret", request.path);
                return Response::new(status, "").with("Location", to);
            }
            state.plain(request)
        });
        pull(&registry, &user()).await.unwrap();
    }
    let seen = storage.requests();
    assert!(seen.len() >= 20, "{}", seen.len());
    assert!(
        seen.iter()
            .all(|request| request.authorization().is_empty())
    );
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_credentials() {
    let registry = Registry::start(&layout(), |request, state| {
        if request.authorization() != basic() {
            return refused(&[r#"Basic realm="x""#.to_owned()]);
        }
        if request.path.contains("/x/img/blobs/") {
            let to = request.path.replace("/x/img/", "/x/other/");
            return Response::new(307, "").with("Location", to);
        }
        state.plain(request)
    });
    pull(&registry, &user()).await.unwrap();
}

#[tokio::test]
async fn a_mirror_behind_a_redirect_is_asked_as_a_stranger() {
    let layout = layout();
    let mirror = Registry::start(&layout, |request, state| match request {
        r if r.path == "/token" && r.authorization().is_empty() => grant("mirror"),
        r if r.authorization() == "Bearer mirror" => state.plain(r),
        _ => refused(&[bearer(state, "")]),
    });
    let elsewhere = mirror.address;
    let registry = Registry::start(&layout, move |request, _| {
        Response::new(307, "").with("Location", format!("http://{elsewhere}{}", request.path))
    });
    pull(&registry, &user()).await.unwrap();
    let shown = mirror.requests();
    assert!(
        shown
            .iter()
            .all(|request| !request.authorization().contains("Basic"))
    );
}

#[tokio::test]
async fn answers_come_in_every_shape() {
    let ways: Vec<(&str, Manner)> = vec![
        ("chunked", Box::new(|r, s| s.plain(r).sent(How::Chunked))),
        (
            "no content type",
            Box::new(|r, s| {
                let mut plain = s.plain(r);
                plain.headers.clear();
                plain
            }),
        ),
        (
            "charset",
            Box::new(|r, s| {
                let mut plain = s.plain(r);
                plain.headers =
                    vec![("Content-Type", "application/json; charset=utf-8".to_owned())];
                plain
            }),
        ),
        (
            "no ping",
            Box::new(|r, s| {
                if r.path == "/v2/" {
                    Response::error(404, "NOT_FOUND")
                } else {
                    s.plain(r)
                }
            }),
        ),
        (
            "one manifest breaks off",
            Box::new(|r, s| {
                let how = if r.is_manifest() && s.count("cut") == 1 {
                    How::Cut(20)
                } else {
                    How::Whole
                };
                s.plain(r).sent(how)
            }),
        ),
    ];
    for (way, manner) in ways {
        let registry = Registry::start(&layout(), manner);
        let result = pull(&registry, &Auth::Anonymous).await;
        assert!(result.is_ok(), "{way}: {result:?}");
    }
}

/// The blob from where the request wants it.
fn ranged(request: &Request, state: &State) -> Response {
    let mut response = state.plain(request);
    let start = request
        .header("range")
        .strip_prefix("bytes=")
        .and_then(|range| range.split('-').next()?.parse().ok());
    if let Some(start) = start.filter(|start: &usize| *start > 0) {
        let length = response.body.len();
        response.status = 206;
        response.body.drain(..start);
        response = response.with(
            "Content-Range",
            format!("bytes {start}-{}/{length}", length - 1),
        );
    }
    response
}

#[tokio::test]
async fn blobs_that_break_off_are_continued_with_and_without_ranges() {
    for ranges in [true, false] {
        let registry = Registry::start(&layout(), move |request, state| {
            let response = if ranges {
                ranged(request, state)
            } else {
                state.plain(request)
            };
            if request.is_blob() && response.body.len() > 10_000 && state.count("cut") <= 3 {
                let half = response.body.len() / 2;
                return response.sent(How::Cut(half));
            }
            response
        });
        let result = pull(&registry, &Auth::Anonymous).await;
        assert!(result.is_ok(), "{ranges}: {result:?}");
    }
}

#[tokio::test]
async fn what_an_earlier_pull_left_wrong_does_not_spoil_the_next() {
    let layout = layout();
    let registry = Registry::start(&layout, ranged);
    let (dir, store) = store();
    let partial = dir
        .path()
        .join("images/partial")
        .join(layout.layers[0].hex());
    std::fs::write(partial, vec![9; 100_000]).unwrap();
    pull_into(&store, &registry, &Auth::Anonymous)
        .await
        .unwrap();
    // A range other than the one asked for is not taken for it.
    let registry = Registry::start(&layout, |request, state| {
        let mut response = ranged(request, state);
        for (name, value) in &mut response.headers {
            if *name == "Content-Range" {
                *value = "bytes 0-9/10".to_owned();
            }
        }
        if request.is_blob() && response.body.len() > 10_000 && state.count("cut") == 1 {
            return response.sent(How::Cut(500_000));
        }
        response
    });
    pull(&registry, &Auth::Anonymous).await.unwrap();
}

#[tokio::test]
async fn each_of_several_credentials_is_tried() {
    let registry = Registry::start(&layout(), wants_token(|state| vec![bearer(state, "")]));
    let wrong = |name: &str| Auth::Basic {
        username: name.to_owned(),
        password: "x".to_owned(),
    };
    let name: Reference = registry.name().parse().unwrap();
    let (_dir, store) = store();
    let err = store
        .pull_with_any(&name, &[wrong("a"), wrong("b")])
        .await
        .unwrap_err();
    assert!(matches!(err, PullError::Unauthorized { .. }), "{err:?}");
    store
        .pull_with_any(&name, &[wrong("a"), wrong("b"), user(), wrong("c")])
        .await
        .unwrap();
}

/// The registry's own reason for a pull that failed.
fn reason(err: &PullError) -> &RegistryError {
    match err {
        PullError::Registry { source, .. }
        | PullError::TooManyRequests { source, .. }
        | PullError::Unauthorized { source, .. }
        | PullError::Unreachable { source, .. }
        | PullError::NotFound { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn hostile_registries_are_given_up() {
    let layout = layout();
    let start = Instant::now();
    let failure = async |manner: Manner| {
        let registry = Registry::start(&layout, manner);
        let err = pull(&registry, &user()).await.unwrap_err();
        (err, registry.requests().len())
    };
    let endless = |status| Response::new(status, vec![b' '; 100_000]).sent(How::Endless);

    let (err, _) = failure(Box::new(move |r, s| {
        if r.is_manifest() {
            endless(200)
        } else {
            s.plain(r)
        }
    }))
    .await;
    assert!(
        matches!(reason(&err), RegistryError::TooLong { .. }),
        "{err:?}"
    );

    let (err, _) = failure(Box::new(move |_, _| endless(404))).await;
    assert!(matches!(err, PullError::NotFound { .. }), "{err:?}");

    let (err, _) = failure(Box::new(move |r, s| {
        if r.is_blob() {
            endless(200)
        } else {
            s.plain(r)
        }
    }))
    .await;
    assert!(matches!(err, PullError::TooLong { .. }), "{err:?}");

    let (err, _) = failure(Box::new(move |r, s| {
        if r.path == "/token" {
            endless(200)
        } else {
            refused(&[bearer(s, "")])
        }
    }))
    .await;
    assert!(
        matches!(reason(&err), RegistryError::TooLong { .. }),
        "{err:?}"
    );

    for wait in [
        "86400",
        "99999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let (err, requests) = failure(Box::new(move |_, _| {
            Response::error(429, "TOOMANYREQUESTS").with("Retry-After", wait)
        }))
        .await;
        assert!(matches!(err, PullError::TooManyRequests { .. }), "{err:?}");
        assert!(
            matches!(reason(&err), RegistryError::Busy { .. }),
            "{err:?}"
        );
        assert_eq!(requests, 1);
    }
    let (err, requests) = failure(Box::new(|_, _| {
        Response::error(429, "TOOMANYREQUESTS").with("Retry-After", "0")
    }))
    .await;
    assert!(matches!(err, PullError::TooManyRequests { .. }), "{err:?}");
    assert!(requests <= 10, "{requests}");

    let (err, requests) = failure(Box::new(|r, _| {
        Response::new(302, "").with("Location", format!("{}x", r.path))
    }))
    .await;
    assert!(
        matches!(reason(&err), RegistryError::Redirects { .. }),
        "{err:?}"
    );
    assert!(requests <= 12, "{requests}");

    let (err, _) = failure(Box::new(|_, _| {
        Response::new(302, "").with("Location", "file:///etc/passwd")
    }))
    .await;
    assert!(
        matches!(reason(&err), RegistryError::Address { .. }),
        "{err:?}"
    );

    // A token server that sends us round, tokens that never do, challenges without end.
    let (err, _) = failure(Box::new(|r, s| match &*r.path {
        "/token" => Response::new(307, "").with("Location", "/token"),
        _ => refused(&[bearer(s, "")]),
    }))
    .await;
    assert!(
        matches!(reason(&err), RegistryError::Redirects { .. }),
        "{err:?}"
    );
    let (err, requests) = failure(Box::new(|r, s| match &*r.path {
        "/token" => grant("useless"),
        _ => refused(&[bearer(s, "")]),
    }))
    .await;
    assert!(matches!(err, PullError::Unauthorized { .. }), "{err:?}");
    assert!(requests <= 12, "{requests}");

    let (err, _) = failure(Box::new(|r, s| {
        let mut plain = s.plain(r);
        if r.is_blob() {
            plain.body.reverse();
        }
        plain
    }))
    .await;
    let mismatch = matches!(
        err,
        PullError::Content {
            source: ContentError::Mismatch { .. },
            ..
        }
    );
    assert!(mismatch, "{err:?}");

    // One byte an answer is no progress.
    let (err, requests) = failure(Box::new(|r, s| {
        let how = if r.is_blob() { How::Cut(1) } else { How::Whole };
        ranged(r, s).sent(how)
    }))
    .await;
    assert!(matches!(err, PullError::Interrupted { .. }), "{err:?}");
    assert!(requests <= 40, "{requests}");
    assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
}
