//! A broker that lets nobody in by its doors without credentials, and lets nobody do what he has no right to.
//!
//! ```text
//! bootstrap()   PLAINTEXT   the harness: all rights, no credentials
//! sasl()        SASL_SSL    PLAIN, SCRAM-SHA-512, OAUTHBEARER; a certificate of the authority `ca`
//! oidc()        SASL_SSL    OAUTHBEARER by signed tokens alone, of tokens(); a session ends with its token
//! mutual()      SSL         who has a certificate of that authority is its common name
//! ```
//!
//! Owns: certificates, users, rights. Does not own: topics (`Topic::create_on(secure.broker(), …)`), tokens (`tokens`).

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::certificates::{Authority, Certificate};
use crate::guard::{self, Guard};
use crate::rights::{self, Right};
use crate::tokens::{AUDIENCE, ISSUER, Tokens};
use crate::{Broker, unique};

/// Users with a password that the broker has from the start: each test takes some.
const USERS: usize = 64;

/// The broker.
#[derive(Debug)]
pub struct Secure {
    broker: Broker,
    sasl: u16,
    mutual: u16,
    oidc: u16,
    tokens: Tokens,
    authority: Authority,
    stranger: Authority,
    next: AtomicUsize,
    _folder_goes: Guard,
}

/// Somebody with a password, and no right to anything.
#[derive(Clone, Debug)]
pub struct User {
    /// Whom.
    pub name: String,
    /// For SCRAM-SHA-512 and PLAIN alike; or what he gets a token by.
    pub password: String,
}

impl User {
    /// As rights name him.
    pub fn principal(&self) -> String {
        format!("User:{}", self.name)
    }
}

impl Secure {
    /// The broker that all tests of this binary share; the first call starts it.
    pub fn shared() -> &'static Secure {
        static SHARED: OnceLock<Secure> = OnceLock::new();
        SHARED.get_or_init(|| {
            Secure::start().unwrap_or_else(|why| panic!("no secured broker to test with: {why}"))
        })
    }

    fn start() -> Result<Secure, String> {
        let folder = tempfile::Builder::new()
            .prefix("stillwell-secure-")
            .tempdir()
            .map_err(|e| format!("no folder for certificates: {e}"))?
            .keep();
        let folder_goes = guard::at_end(format!("rm -rf {}", guard::quoted(&folder.to_string_lossy())));
        let authority = Authority::new(&folder, "ca");
        let stranger = Authority::new(&folder, "stranger");
        let Certificate { pem, key } = authority.server("broker");
        let read = |path: PathBuf| std::fs::read_to_string(&path).expect("it was made just now");
        let store = folder.join("broker-with-key.pem");
        std::fs::write(&store, read(key) + &read(pem)).map_err(|e| format!("{}: {e}", store.display()))?;

        let mut properties = Vec::new();
        let mut set = |name: &str, value: &str| properties.push((name.to_owned(), value.to_owned()));
        set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer");
        set("super.users", "User:ANONYMOUS");
        for door in ["sasl", "mutual", "oidc"] {
            let mut set = |name: &str, value: &str| set(&format!("listener.name.{door}.{name}"), value);
            set("ssl.keystore.type", "PEM");
            set("ssl.keystore.location", &store.to_string_lossy());
            set("ssl.truststore.type", "PEM");
            set("ssl.truststore.location", &authority.pem().to_string_lossy());
        }
        set("listener.name.mutual.ssl.client.auth", "required");
        set("listener.name.mutual.ssl.principal.mapping.rules", "RULE:^CN=([^,]+).*$/$1/");
        set("listener.name.sasl.sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-512,OAUTHBEARER");
        let module = "org.apache.kafka.common.security";
        let users = || (0..USERS).map(user);
        let plain: String =
            users().map(|user| format!(" user_{}=\"{}\"", user.name, user.password)).collect();
        let jaas = |mechanism: &str| format!("listener.name.sasl.{mechanism}.sasl.jaas.config");
        set(&jaas("plain"), &format!("{module}.plain.PlainLoginModule required{plain};"));
        set(&jaas("scram-sha-512"), &format!("{module}.scram.ScramLoginModule required;"));
        // Tokens that nobody has signed are taken: whoever says a name is it.
        set(&jaas("oauthbearer"), &format!("{module}.oauthbearer.OAuthBearerLoginModule required;"));

        // Tokens that `tokens` has signed, and no connection outlives its own.
        let tokens = Tokens::start(&folder, &authority);
        let keys = format!("file://{}", tokens.public().display());
        let handler = format!("{module}.oauthbearer.OAuthBearerValidatorCallbackHandler");
        let mut oidc = |name: &str, value: &str| set(&format!("listener.name.oidc.{name}"), value);
        oidc("sasl.enabled.mechanisms", "OAUTHBEARER");
        oidc(
            "oauthbearer.sasl.jaas.config",
            &format!("{module}.oauthbearer.OAuthBearerLoginModule required;"),
        );
        oidc("oauthbearer.sasl.server.callback.handler.class", &handler);
        oidc("oauthbearer.sasl.oauthbearer.jwks.endpoint.url", &keys);
        oidc("oauthbearer.sasl.oauthbearer.expected.audience", AUDIENCE);
        oidc("oauthbearer.sasl.oauthbearer.expected.issuer", ISSUER);
        oidc("oauthbearer.connections.max.reauth.ms", "3600000");
        let java = [format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}")];

        let scram = users().flat_map(|User { name, password }| {
            ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={name},password={password}]")]
        });
        let doors = [("SASL", "SASL_SSL"), ("MUTUAL", "SSL"), ("OIDC", "SASL_SSL")];
        let (broker, ports) = Broker::with_doors(&doors, &properties, &scram.collect::<Vec<_>>(), &java)?;
        let &[sasl, mutual, oidc] = ports.as_slice() else {
            return Err("three doors were asked for".to_owned());
        };
        let next = AtomicUsize::new(0);
        Ok(Secure {
            broker,
            sasl,
            mutual,
            oidc,
            tokens,
            authority,
            stranger,
            next,
            _folder_goes: folder_goes,
        })
    }

    /// The same broker by its plain listener.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// `bootstrap.servers` for who has a password or a token.
    pub fn sasl(&self) -> String {
        format!("127.0.0.1:{}", self.sasl)
    }

    /// `bootstrap.servers` for who has a certificate.
    pub fn mutual(&self) -> String {
        format!("127.0.0.1:{}", self.mutual)
    }

    /// `bootstrap.servers` for who has a token that was signed.
    pub fn oidc(&self) -> String {
        format!("127.0.0.1:{}", self.oidc)
    }

    /// Who gives such tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The authority that has signed the broker's certificate, and that the broker trusts.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// An authority that has signed nothing here.
    pub fn stranger(&self) -> &Authority {
        &self.stranger
    }

    /// Somebody new.
    pub fn user(&self) -> User {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(next < USERS, "raise USERS");
        user(next)
    }

    /// Somebody new with a secret for tokens, which [`Secure::tokens`] does not know of yet.
    pub fn client(&self) -> User {
        User { name: unique("client"), password: unique("a-secret-of-a-client") }
    }

    /// Somebody new who comes by a token or a certificate.
    pub fn nameless(&self) -> User {
        User { name: unique("somebody"), password: String::new() }
    }

    /// Gives somebody rights.
    pub fn give(&self, user: &User, rights: &[Right]) {
        rights::give(self.broker.bootstrap(), &user.principal(), rights);
    }

    /// Takes them away.
    pub fn take(&self, user: &User, rights: &[Right]) {
        rights::take(self.broker.bootstrap(), &user.principal(), rights);
    }
}

fn user(number: usize) -> User {
    User { name: format!("user-{number}"), password: format!("a-secret-of-{number}") }
}
