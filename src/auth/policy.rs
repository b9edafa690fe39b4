//! The rules: who, from where, on which listener, what, and what of it. Pure.
//!
//! They are read top to bottom and the first that matches decides; nothing matches: nothing may be pulled. A rule matches
//! a repository that needs credentials (L8) only if it says `private = true`, but for one that allows nothing, which
//! holds for all. Where the operator wrote no rules, two stand in for them: see [`Policy::new`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Access, AccessRule, matches_pattern};

/// What may be done with a repository. Each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    #[default]
    Nothing,
    /// What is held may be pulled; nothing is asked of an upstream.
    Held,
    /// What is not held may be fetched.
    Fetch,
}

impl Right {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Right::Nothing => "nothing",
            Right::Held => "pull-held",
            Right::Fetch => "fetch",
        }
    }
}

/// Who is asking: `None` is anonymous. Users of the password file have their name; others a prefix before it:
/// `github:acme/app` of a token issuer called `github`, `cert:node-1` of a client certificate.
pub type Identity = Option<Arc<str>>;

/// As the log and people see it.
pub fn shown(identity: &Identity) -> &str {
    identity.as_deref().unwrap_or("anonymous")
}

/// Whether it was this proxy's operator who vouched for the name, and not the issuer of a token.
fn is_own(identity: &Identity) -> bool {
    let name = identity.as_deref();
    name.is_some_and(|name| !name.contains(':') || name.starts_with(CERTIFICATE))
}

/// Before the name in a client certificate.
pub const CERTIFICATE: &str = "cert:";

/// Where a request stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub listener: &'a str,
    /// `None`: a Unix socket.
    pub from: Option<IpAddr>,
}

#[derive(Clone, Debug)]
enum Who {
    Everybody,
    Anonymous,
    Authenticated,
    /// With a name that the operator gave: of the password file or a certificate.
    Own,
    Named(Box<str>),
}

impl Who {
    fn parse(text: &str) -> Who {
        match text {
            "*" => Who::Everybody,
            "anonymous" => Who::Anonymous,
            "authenticated" => Who::Authenticated,
            name => Who::Named(name.into()),
        }
    }

    fn is(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Who::Everybody, _) | (Who::Anonymous, None) | (Who::Authenticated, Some(_)) => true,
            (Who::Own, identity) => is_own(identity),
            (Who::Named(pattern), Some(name)) => matches_pattern(pattern, name),
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    who: Vec<Who>,
    from: Vec<ipnet::IpNet>,
    listeners: Vec<Box<str>>,
    images: Vec<Box<str>>,
    may: Right,
    private: bool,
    /// For people.
    text: String,
}

/// Why a rule did not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    Who,
    From,
    Listener,
    Image,
    Private,
}

impl Miss {
    pub fn as_str(self) -> &'static str {
        match self {
            Miss::Who => "it is for somebody else",
            Miss::From => "it is for other addresses",
            Miss::Listener => "it is for another listener",
            Miss::Image => "it is for other images",
            Miss::Private => "the repository needs credentials, and the rule does not say private = true",
        }
    }
}

impl Rule {
    fn new(rule: &AccessRule) -> Rule {
        let boxed = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        let may = match rule.may {
            crate::config::May::Nothing => Right::Nothing,
            crate::config::May::PullHeld => Right::Held,
            crate::config::May::Fetch => Right::Fetch,
        };
        Rule {
            who: rule.who.iter().map(|text| Who::parse(text)).collect(),
            from: rule.from.clone(),
            listeners: boxed(&rule.listeners),
            images: boxed(&rule.images),
            may,
            private: rule.private,
            text: rule.to_string(),
        }
    }

    /// The first condition that does not hold.
    fn miss(&self, asked: &Asked<'_>) -> Option<Miss> {
        let Place { listener, from } = asked.place;
        if !self.who.iter().any(|who| who.is(asked.who)) {
            return Some(Miss::Who);
        }
        if !self.is_from(from) {
            return Some(Miss::From);
        }
        if !self.is_on(listener) {
            return Some(Miss::Listener);
        }
        if !self.images.is_empty() && !self.images.iter().any(|pattern| matches_pattern(pattern, asked.image)) {
            return Some(Miss::Image);
        }
        let holds = !asked.needs_credentials || self.private || self.may == Right::Nothing;
        (!holds).then_some(Miss::Private)
    }

    /// Who comes by a Unix socket has no address: a rule for addresses is not for him.
    fn is_from(&self, from: Option<IpAddr>) -> bool {
        let holds = |net: &ipnet::IpNet| from.is_some_and(|from| net.contains(&from.to_canonical()));
        self.from.is_empty() || self.from.iter().any(holds)
    }

    fn is_on(&self, listener: &str) -> bool {
        self.listeners.is_empty() || self.listeners.iter().any(|name| **name == *listener)
    }

    /// Whether it is for callers who stand there.
    fn is_at(&self, place: Place<'_>) -> bool {
        self.is_on(place.listener) && self.is_from(place.from)
    }

    /// Whether it could let `who` in, whatever the image.
    fn may_let_in(&self, who: &Identity, place: Place<'_>) -> bool {
        let any_image = Rule {
            images: Vec::new(),
            ..self.clone()
        };
        let asked = Asked {
            who,
            place,
            image: "",
            needs_credentials: false,
        };
        self.may > Right::Nothing && any_image.miss(&asked).is_none()
    }

    /// Whether it is about every image, public or not, from everywhere on this listener.
    fn is_whole(&self, place: Place<'_>) -> bool {
        self.is_on(place.listener) && self.from.is_empty() && self.images.is_empty()
    }
}

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub who: &'a Identity,
    pub place: Place<'a>,
    /// `docker.io/library/alpine`: upstream and repository.
    pub image: &'a str,
    /// Whether its upstream gives it only to credentials, or may do so.
    pub needs_credentials: bool,
}

/// All rules.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Nobody wrote any.
    is_default: bool,
}

impl Policy {
    /// Without rules: everybody may pull and fetch what is public, and whoever logged in with a password or certificate
    /// of the operator's also what needs credentials. A token issuer vouches for half the world: for its identities
    /// there has to be a rule.
    pub fn new(access: &Access) -> Policy {
        let is_default = access.rules.is_empty();
        let mut rules: Vec<Rule> = access.rules.iter().map(Rule::new).collect();
        if is_default {
            let rule = |who, private, text: &str| Rule {
                who: vec![who],
                from: Vec::new(),
                listeners: Vec::new(),
                images: Vec::new(),
                may: Right::Fetch,
                private,
                text: text.to_owned(),
            };
            rules.push(rule(
                Who::Own,
                true,
                "built in: who logged in with a password or a client certificate may fetch, also what needs credentials",
            ));
            rules.push(rule(
                Who::Everybody,
                false,
                "built in: everybody may fetch what needs no credentials",
            ));
        }
        Policy { rules, is_default }
    }

    pub fn is_default(&self) -> bool {
        self.is_default
    }

    /// The first rule that matches says it.
    pub fn right(&self, asked: &Asked<'_>) -> Right {
        let rule = self.rules.iter().find(|rule| rule.miss(asked).is_none());
        rule.map_or(Right::Nothing, |rule| rule.may)
    }

    /// The same, told rule by rule down to the one that decides.
    pub fn explain(&self, asked: &Asked<'_>) -> Explanation {
        let mut steps = Vec::new();
        for (at, rule) in self.rules.iter().enumerate() {
            let miss = rule.miss(asked);
            steps.push(Step {
                number: at + 1,
                rule: rule.text.clone(),
                miss,
            });
            if miss.is_none() {
                return Explanation { steps, right: rule.may };
            }
        }
        Explanation {
            steps,
            right: Right::Nothing,
        }
    }

    /// Whether there may be anything at all that `who` can pull there.
    pub fn may_let_in(&self, who: &Identity, place: Place<'_>) -> bool {
        for rule in &self.rules {
            if rule.may_let_in(who, place) {
                return true;
            }
            // A rule that closes everything ends it.
            if rule.may == Right::Nothing && rule.is_whole(place) && rule.who.iter().any(|w| w.is(who)) {
                return false;
            }
        }
        false
    }

    /// Whether there is anything on this listener for callers without a login, from wherever they come.
    pub fn serves_anonymous(&self, listener: &str) -> bool {
        let place = Place { listener, from: None };
        for rule in &self.rules {
            let here = rule.is_on(listener);
            if !here || !rule.who.iter().any(|who| who.is(&None)) {
                continue;
            }
            if rule.may > Right::Nothing || rule.is_whole(place) {
                return rule.may > Right::Nothing;
            }
        }
        false
    }

    /// Whether a login could get somebody who stands there more than he has without.
    pub fn gains_by_login(&self, place: Place<'_>) -> bool {
        // Whether a rule before was for nobody alone: then one for all may be more to those with a name.
        let mut nobody_apart = false;
        for rule in self.rules.iter().filter(|rule| rule.is_at(place)) {
            let is_for_all = rule.who.iter().any(|who| matches!(who, Who::Everybody));
            let is_for_some = !is_for_all && rule.who.iter().any(|who| !matches!(who, Who::Anonymous));
            if (is_for_some || (is_for_all && nobody_apart)) && rule.may > Right::Nothing {
                return true;
            }
            nobody_apart |= !is_for_all && rule.who.iter().any(|who| who.is(&None));
            // Nothing behind it matters.
            let is_last = rule.may == Right::Nothing || (rule.may == Right::Fetch && rule.private);
            if is_for_all && is_last && rule.images.is_empty() {
                return false;
            }
        }
        false
    }

    /// Whether on this listener everybody, from everywhere, may fetch whatever is public: the case that costs nothing.
    pub fn is_open(&self, listener: &str) -> bool {
        let place = Place { listener, from: None };
        for rule in &self.rules {
            let here = rule.is_on(listener);
            match rule.may {
                Right::Fetch if rule.is_whole(place) && rule.who.iter().any(|who| matches!(who, Who::Everybody)) => {
                    return true;
                }
                Right::Fetch => {}
                _ if here => return false,
                _ => {}
            }
        }
        false
    }
}

/// How a verdict came about.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub steps: Vec<Step>,
    pub right: Right,
}

#[derive(Clone, Debug)]
pub struct Step {
    /// From 1, as the rules stand in the configuration.
    pub number: usize,
    pub rule: String,
    /// `None`: it matched.
    pub miss: Option<Miss>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.miss.map_or("matches", Miss::as_str);
        write!(f, "{}. {}: {outcome}", self.number, self.rule)
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
