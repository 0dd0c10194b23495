//! Tokens, from the server that a registry names.

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::patience::Patience;
use super::{
    MOST_REDIRECTS, Registry, RegistryError, address, basic, origin, redirect, refusal, secret,
    send, shown,
};
use crate::pull::Auth;

/// The most that is read of a token server's answer.
const LIMIT: u64 = 1 << 20;

/// What a token server answers. Either name will do; how long the token holds is seen when it is refused.
#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    /// Fetches a token as the challenge of `registry` says, for the user if there is one.
    pub(super) async fn token(
        &self,
        registry: &Url,
        challenge: &Challenge,
        auth: &Auth,
    ) -> Result<HeaderValue, RegistryError> {
        let url = self.token_url(registry, challenge)?;
        let user = match auth {
            Auth::Basic { username, password } => basic(username, password),
            Auth::Anonymous | Auth::Bearer(_) => None,
        };
        let body = self
            .short(&url, LIMIT, || self.ask_for_token(&url, user.as_ref()))
            .await?;
        let no_token = || RegistryError::NoToken { url: shown(&url) };
        let granted: Granted = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let tokens = [granted.token, granted.access_token];
        let token = tokens.into_iter().flatten().find(|token| !token.is_empty());
        token
            .and_then(|token| secret(&format!("Bearer {token}")))
            .ok_or_else(no_token)
    }

    /// The realm with the parameters that the registry asks for, beside those that it has already.
    fn token_url(&self, registry: &Url, challenge: &Challenge) -> Result<Url, RegistryError> {
        let mut url = address(registry, challenge.get("realm").unwrap_or_default())?;
        let default = format!("repository:{}:pull", self.repository);
        let scopes = challenge.get("scope").unwrap_or(&default);
        let mut query = url.query_pairs_mut();
        if let Some(service) = challenge.get("service") {
            query.append_pair("service", service);
        }
        for scope in scopes.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
        drop(query);
        Ok(url)
    }

    async fn ask_for_token(
        &self,
        url: &Url,
        user: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut patience = Patience::new(self.retries);
        loop {
            let answer = self.follow_token(url, user).await?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            match patience.after(&answer)? {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(refusal(answer).await),
            }
        }
    }

    /// The user's password goes to the server that the registry named, not to where that one sends us.
    async fn follow_token(
        &self,
        url: &Url,
        user: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.http.get(at.clone());
            if let Some(user) = user
                && origin(&at) == origin(url)
            {
                request = request.header(AUTHORIZATION, user);
            }
            let answer = send(request, &at).await?;
            match redirect(&at, &answer)? {
                Some(next) => at = next,
                None => return Ok(answer),
            }
        }
        Err(RegistryError::Redirects { url: shown(url) })
    }
}
