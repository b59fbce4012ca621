//! Which databases a guardian asks, and as whom: the same arguments for `wait`, which asks until they are ready, and for `serve`,
//! which goes on asking.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use crate::cli::{Failure, HostPort};
use crate::probe::{Password, PostgresLogin, Probe, RedisLogin};

/// The databases, and how to log in to them.
#[derive(Args, Clone, Debug, Default)]
pub struct DatabaseArgs {
    /// A PostgreSQL; may be given more than once. Port 5432 where none is written
    #[arg(long, value_name = "HOST[:PORT]")]
    pub postgres: Vec<HostPort>,
    /// A Redis; may be given more than once. Port 6379 where none is written
    #[arg(long, value_name = "HOST[:PORT]")]
    pub redis: Vec<HostPort>,
    /// Take a PostgreSQL standby for not ready. Needs --user: only a query tells
    #[arg(long)]
    pub require_primary: bool,
    /// Log in to PostgreSQL as this role and have a query answered
    #[arg(long, value_name = "ROLE", value_parser = NonEmptyStringValueParser::new())]
    pub user: Option<String>,
    /// File with the password of --user
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// Database to log in to [default: named like --user]
    #[arg(long, value_name = "NAME", requires = "user", value_parser = NonEmptyStringValueParser::new())]
    pub database: Option<String>,
    /// File with the password of Redis
    #[arg(long, value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,
    /// User of Redis' access control list [default: the default user]
    #[arg(long, value_name = "NAME", requires = "redis_password_file", value_parser = NonEmptyStringValueParser::new())]
    pub redis_user: Option<String>,
}

impl DatabaseArgs {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.postgres.is_empty() && self.redis.is_empty()
    }

    /// What clap cannot say with a remedy, for the subcommand `verb`.
    ///
    /// # Errors
    /// Exit code 64.
    pub fn check(&self, verb: &str) -> Result<(), Failure> {
        let wrong = |what: &str| Err(Failure::usage(format!("{verb}: {what}")));
        if self.postgres.is_empty() && (self.require_primary || self.user.is_some()) {
            return wrong(
                "--require-primary and --user are about PostgreSQL, but none is named; add --postgres HOST[:PORT]",
            );
        }
        if self.redis.is_empty() && self.redis_password_file.is_some() {
            return wrong("--redis-password-file is given, but no Redis is named; add --redis HOST[:PORT]");
        }
        if self.require_primary && self.user.is_none() {
            return wrong(
                "--require-primary needs a login, because only a query tells a primary from a standby; add --user \
                 ROLE, and --password-file FILE where the role has a password",
            );
        }
        Ok(())
    }

    /// A probe for each, with the passwords that the files hold now.
    ///
    /// # Errors
    /// Exit code 78, when a password file cannot be used.
    pub fn probes(&self, verb: &str) -> Result<Vec<Probe>, Failure> {
        let mut wrong = Vec::new();
        let mut read = |option: &str, path: Option<&Path>| {
            path.and_then(|path| {
                Password::read(path)
                    .map_err(|error| wrong.push(format!("{verb}: {option}: {error}")))
                    .ok()
            })
        };
        let password = read("--password-file", self.password_file.as_deref());
        let redis_password = read("--redis-password-file", self.redis_password_file.as_deref());
        if !wrong.is_empty() {
            return Err(Failure::configs(wrong));
        }
        let postgres_login = self.user.as_ref().map(|user| PostgresLogin {
            user: user.clone(),
            password,
            database: self.database.clone().unwrap_or_else(|| user.clone()),
            require_primary: self.require_primary,
        });
        let redis_login = redis_password.map(|password| RedisLogin {
            user: self.redis_user.clone(),
            password,
        });
        let postgres = self.postgres.iter().cloned();
        let redis = self.redis.iter().cloned();
        Ok(postgres
            .map(|address| Probe::postgres(address, postgres_login.clone()))
            .chain(redis.map(|address| Probe::redis(address, redis_login.clone())))
            .collect())
    }
}
