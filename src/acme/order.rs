//! One order, from the account to the chain.
//!
//! account → order → for each name that is not proven yet: the challenge that the operator chose, its answer put up, the authority
//! told → all proven → a new key and a request for it → chain → checked. Answers are taken down however it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{
    Account, AccountCredentials, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error,
    ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::certificate::Certificate;
use super::directory::Directory;
use super::error::{Fault, said};
use super::issued::{Answer, Issued};
use super::record::{self, Accounts, Issue, Wanted};
use crate::config::{Acme, Binding, Challenge};
use crate::store::{Paper, State};

/// How an order is looked at again: soon, then less often. A directory may say otherwise (Retry-After).
fn polls() -> RetryPolicy {
    RetryPolicy::new()
        .initial_delay(Duration::from_millis(250))
        .backoff(1.5)
        .timeout(Duration::from_secs(180))
}

/// What it takes.
pub struct Office<'a> {
    pub acme: &'a Acme,
    pub state: &'a State,
    pub issued: &'a Arc<Issued>,
    pub directory: Directory,
}

impl Office<'_> {
    /// A certificate for what is wanted now, in place of the one that `replaces` names. Nothing of it is kept yet.
    pub async fn order(&self, replaces: Option<CertificateIdentifier<'static>>) -> Result<(Issue, Certificate), Fault> {
        let account = self.account().await?;
        let mut order = match self.place(&account, replaces).await {
            // A directory that has lost its accounts gives out another.
            Err(Error::Api(problem)) if is_about(&problem, "accountDoesNotExist") => {
                tracing::info!(
                    directory = self.directory.shown(),
                    "the ACME account is not known any more: making another"
                );
                self.forget();
                let account = self.account().await?;
                self.place(&account, None)
                    .await
                    .map_err(|error| self.directory.fault(error))?
            }
            placed => placed.map_err(|error| self.directory.fault(error))?,
        };
        let answers = self.prove(&mut order).await?;
        self.await_proof(&mut order).await?;
        drop(answers);
        self.finish(&mut order).await
    }

    /// The account at this directory; made, and written down, if there is none.
    async fn account(&self) -> Result<Account, Fault> {
        match self.known_account().await? {
            Some(account) => Ok(account),
            None => self.new_account().await,
        }
    }

    /// The one that is written down.
    pub async fn known_account(&self) -> Result<Option<Account>, Fault> {
        let mut accounts = self.accounts();
        let kid = self.acme.binding.as_ref().map(|binding| &binding.kid);
        let home = self.acme.directory.as_str();
        let found = accounts.get_mut(home).filter(|found| found.eab_kid.as_ref() == kid);
        let Some(found) = found else { return Ok(None) };
        let Ok(credentials) = serde_json::from_value::<AccountCredentials>(found.credentials.clone()) else {
            tracing::warn!(file = %self.state.path(Paper::Accounts).display(), "the ACME account is damaged: making another");
            return Ok(None);
        };
        let builder = Account::builder_with_http(Box::new(self.directory.clone()));
        let account = builder
            .from_credentials(credentials)
            .await
            .map_err(|error| self.directory.fault(error))?;
        if found.contact != self.acme.contact {
            let contact: Vec<&str> = self.acme.contact.iter().map(String::as_str).collect();
            match account.update_contacts(&contact).await {
                Ok(()) => {
                    found.contact.clone_from(&self.acme.contact);
                    self.keep(&accounts);
                }
                Err(error) => tracing::warn!(error = %self.directory.fault(error), "acme.contact was not passed on"),
            }
        }
        Ok(Some(account))
    }

    fn accounts(&self) -> Accounts {
        let read = record::read(self.state, Paper::Accounts);
        let read = read.unwrap_or_else(|error| {
            tracing::warn!(error, "the ACME account cannot be read: making another");
            None
        });
        read.unwrap_or_default()
    }

    /// Without it the next start makes another account, which is no harm but for the authority's patience.
    fn keep(&self, accounts: &Accounts) {
        if let Err(error) = record::write(self.state, Paper::Accounts, accounts) {
            tracing::warn!(%error, "the ACME account cannot be kept");
        }
    }

    fn forget(&self) {
        let mut accounts = self.accounts();
        accounts.remove(self.acme.directory.as_str());
        self.keep(&accounts);
    }

    async fn new_account(&self) -> Result<Account, Fault> {
        let contact: Vec<&str> = self.acme.contact.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contact,
            // The operator said so, or there would be no configuration.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let binding = self.acme.binding.as_ref().map(external).transpose()?;
        let home = self.acme.directory.to_string();
        let builder = Account::builder_with_http(Box::new(self.directory.clone()));
        let made = builder.create(&wanted, home.clone(), binding.as_ref()).await;
        let (account, credentials) = made.map_err(|error| self.directory.fault(error))?;
        let record = record::Account {
            eab_kid: self.acme.binding.as_ref().map(|binding| binding.kid.clone()),
            contact: self.acme.contact.clone(),
            credentials: serde_json::to_value(&credentials).unwrap_or_default(),
        };
        let mut accounts = self.accounts();
        accounts.insert(home, record);
        self.keep(&accounts);
        tracing::info!(directory = self.directory.shown(), "ACME account made");
        Ok(account)
    }

    async fn place(&self, account: &Account, replaces: Option<CertificateIdentifier<'static>>) -> Result<Order, Error> {
        let identifier = |name: &String| match name.parse() {
            Ok(ip) => Identifier::Ip(ip),
            Err(_) => Identifier::Dns(name.clone()),
        };
        let names: Vec<Identifier> = self.acme.names.iter().map(identifier).collect();
        let order = |replaces: Option<CertificateIdentifier<'static>>| {
            let mut order = NewOrder::new(&names);
            if let Some(replaces) = replaces {
                order = order.replaces(replaces);
            }
            match &self.acme.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        let is_replacement = replaces.is_some();
        match account.new_order(&order(replaces)).await {
            // That another order replaces it already, or that nobody knows it, is no reason to have none.
            Err(Error::Api(problem)) if is_replacement && !is_about(&problem, "rateLimited") => {
                tracing::debug!(
                    problem = said(&problem),
                    "ordering without naming the certificate of before"
                );
                account.new_order(&order(None)).await
            }
            placed => placed,
        }
    }

    /// Puts up an answer for each name and says so.
    async fn prove(&self, order: &mut Order) -> Result<Vec<Answer>, Fault> {
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.directory.fault(error))?;
            match authorization.status {
                AuthorizationStatus::Valid => {}
                AuthorizationStatus::Pending => answers.push(self.answer(&mut authorization).await?),
                other => {
                    let name = authorization.identifier();
                    let what = format!("its authorization for {name} is {other:?} before anything was asked");
                    return Err(Fault::Refused(self.directory.shown(), what));
                }
            }
        }
        Ok(answers)
    }

    async fn answer<'a>(&self, authorization: &'a mut AuthorizationHandle<'a>) -> Result<Answer, Fault> {
        let name = authorization.identifier().to_string();
        // Names that nobody ordered are answered for nobody.
        if !self.acme.names.contains(&name) {
            let what = format!("it wants a proof for {name}, which is not among acme.names");
            return Err(Fault::Broken(self.directory.shown(), what));
        }
        let offered: Vec<String> = authorization.challenges.iter().map(|one| shown(&one.r#type)).collect();
        let kind = match self.acme.challenge {
            Challenge::TlsAlpn => ChallengeType::TlsAlpn01,
            Challenge::Http { .. } => ChallengeType::Http01,
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            let what = format!(
                "it offers {} for {name}, and acme.challenge is {}",
                offered.join(", "),
                self.acme.challenge.as_str()
            );
            return Err(Fault::Refused(self.directory.shown(), what));
        };
        let authorization = challenge.key_authorization();
        let answer = match self.acme.challenge {
            Challenge::TlsAlpn => self
                .issued
                .answer_handshake(&name, authorization.digest().as_ref())
                .map_err(|error| Fault::Ours(format!("no answer to the challenge for {name}: {error}")))?,
            Challenge::Http { .. } => self.issued.answer_file(&challenge.token, authorization.as_str()),
        };
        challenge
            .set_ready()
            .await
            .map_err(|error| self.directory.fault(error))?;
        Ok(answer)
    }

    async fn await_proof(&self, order: &mut Order) -> Result<(), Fault> {
        match order.poll_ready(&polls()).await {
            Ok(OrderStatus::Ready) => Ok(()),
            Ok(_) => Err(self.why(order).await.unwrap_or_else(|| {
                Fault::Refused(
                    self.directory.shown(),
                    "the order became invalid, without a reason".to_owned(),
                )
            })),
            Err(error @ Error::Api(_)) => Err(self.why(order).await.unwrap_or_else(|| self.directory.fault(error))),
            Err(error) => Err(self.directory.fault(error)),
        }
    }

    /// What the directory did not like, name by name.
    async fn why(&self, order: &mut Order) -> Option<Fault> {
        let mut found = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let name = authorization.identifier().to_string();
            if let Ok(state) = authorization.refresh().await {
                let problems = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
                found.extend(problems.map(|problem| format!("{name}: {}", said(problem))));
            }
        }
        if found.is_empty() {
            return None;
        }
        let advice = match &self.acme.challenge {
            Challenge::TlsAlpn => {
                "port 443 of each name has to lead to a listener with tls.acme = true, and nothing in between may end TLS"
            }
            Challenge::Http { .. } => "port 80 of each name has to lead to acme.http_listen",
        };
        let found = found.join("; ");
        Some(Fault::Challenge(format!(
            "{} looked and did not find our answer: {found}; {advice}",
            self.directory.shown()
        )))
    }

    async fn finish(&self, order: &mut Order) -> Result<(Issue, Certificate), Fault> {
        let ours = |error: rcgen::Error| Fault::Ours(format!("no request for a certificate: {error}"));
        let mut params = CertificateParams::new(self.acme.names.clone()).map_err(ours)?;
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate().map_err(ours)?;
        let request = params.serialize_request(&key).map_err(ours)?;
        let fault = |error| self.directory.fault(error);
        order.finalize_csr(request.der()).await.map_err(fault)?;
        let chain = order.poll_certificate(&polls()).await.map_err(fault)?;
        let key = key.serialize_pem();
        let useless = |why| Fault::Useless(self.directory.shown(), why);
        let certificate = Certificate::read(&chain, &key).map_err(useless)?;
        certificate
            .check(&self.acme.names, SystemTime::now())
            .map_err(useless)?;
        let issue = Issue {
            wanted: Wanted::of(self.acme),
            chain,
            key,
            came_ms: record::unix_ms(SystemTime::now()),
        };
        Ok((issue, certificate))
    }
}

fn is_about(problem: &instant_acme::Problem, kind: &str) -> bool {
    problem
        .r#type
        .as_deref()
        .is_some_and(|found| found.rsplit(':').next() == Some(kind))
}

fn shown(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Reads the key's file. Errors: what is wrong with it, without what is in it.
fn external(binding: &Binding) -> Result<ExternalAccountKey, Fault> {
    let path = binding.key_file.display();
    let text = std::fs::read_to_string(&binding.key_file)
        .map_err(|error| Fault::Ours(format!("acme.eab_key_file: {path} cannot be read: {error}")))?;
    // Some authorities show it in the other alphabet, or with its padding.
    let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    let key = URL_SAFE_NO_PAD.decode(text).ok().filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| {
        Fault::Ours(format!(
            "acme.eab_key_file: {path} holds no base64url, expected the HMAC key as the authority gave it"
        ))
    })?;
    Ok(ExternalAccountKey::new(binding.kid.clone(), &key))
}
