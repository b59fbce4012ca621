//! What a configuration file says of child processes, and whether it can work.
//!
//! **Promise.** [`validate`] names every mistake of every process at once, each with its place and its remedy,
//! and what it lets through can be started as this user on this host now. Commands are looked up here, once: a
//! later change of `PATH` changes nothing, and a program that is removed later fails to start and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Deserializer};

use super::core::{KILL_GRACE, Policy, Restart};
use crate::cli::ConfigDuration;

/// Time to stop when the file names none.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest name of a process, in bytes: names go into answers and journal lines.
const NAME_MAX_BYTES: usize = 64;

/// One `[[process]]` of a configuration file, as written.
///
/// Only what is no table of this form at all is refused while reading; everything else is left to [`validate`],
/// so that one run shows all mistakes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawProcess {
    /// Its name in answers and logs.
    #[serde(default)]
    pub name: String,
    /// The program and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// The signal that asks it to stop; `SIGTERM` when absent.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// The time after which it is killed; 10 s when absent.
    #[serde(default, deserialize_with = "duration")]
    pub stop_timeout: Option<Result<Duration, String>>,
    /// `on-failure` (when absent), `always` or `never`.
    #[serde(default)]
    pub restart: Option<String>,
    /// The folder that it runs in; the guardian's own when absent.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// Added to the guardian's own environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// Keeps what is wrong with a duration for [`validate`], which knows the name of the process.
fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Result<Duration, String>>, D::Error> {
    let value = toml::Value::deserialize(from)?;
    Ok(Some(
        ConfigDuration::deserialize(value)
            .map(|d| d.0)
            .map_err(|why| why.to_string().trim().to_owned()),
    ))
}

/// A process that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Its name in answers and logs; unique.
    pub name: String,
    /// The program that the command's first word was found to mean.
    pub program: PathBuf,
    /// The command as written; the first word is what the program sees as its own name.
    pub command: Vec<String>,
    /// How it is stopped and restarted.
    pub policy: Policy,
    /// The folder that it runs in.
    pub working_directory: Option<PathBuf>,
    /// Added to the guardian's own environment.
    pub environment: BTreeMap<String, String>,
}

/// Checks all processes of a configuration file. `command_timeout` is what the guardian gives a whole drain.
///
/// # Errors
/// Every mistake, each as a line with its place and its remedy.
pub fn validate(raw: Vec<RawProcess>, command_timeout: Duration) -> Result<Vec<ProcessSpec>, Vec<String>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    validate_with(raw, command_timeout, &path)
}

fn validate_with(
    raw: Vec<RawProcess>,
    command_timeout: Duration,
    path: &OsStr,
) -> Result<Vec<ProcessSpec>, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut specs = Vec::new();
    let mut names = BTreeSet::new();
    for (index, process) in raw.into_iter().enumerate() {
        let place = if process.name.is_empty() {
            format!("process #{}", index + 1)
        } else {
            format!("process {:?}", process.name)
        };
        let before = mistakes.len();
        let mut wrong = |field: &str, why: String| mistakes.push(format!("{place}: {field}: {why}"));

        if let Err(why) = check_name(&process.name) {
            wrong("name", why);
        } else if !names.insert(process.name.clone()) {
            wrong(
                "name",
                "another process has it already; give each its own".to_owned(),
            );
        }
        if let Some(folder) = &process.working_directory
            && let Err(why) = check_folder(folder)
        {
            wrong("working-directory", why);
        }
        check_environment(&process.environment, |why| wrong("environment", why));
        let path = process.environment.get("PATH").map_or(path, OsStr::new);
        let program = find_program(&process.command, path).unwrap_or_else(|why| {
            wrong("command", why);
            PathBuf::new()
        });
        let stop_signal = stop_signal(process.stop_signal.as_deref()).unwrap_or_else(|why| {
            wrong("stop-signal", why);
            Signal::SIGTERM as i32
        });
        let restart = restart(process.restart.as_deref()).unwrap_or_else(|why| {
            wrong("restart", why);
            Restart::Never
        });
        let stop_timeout = match process.stop_timeout {
            None => Ok(DEFAULT_STOP_TIMEOUT),
            Some(read) => read,
        }
        .and_then(|timeout| check_stop_timeout(timeout, command_timeout))
        .unwrap_or_else(|why| {
            wrong("stop-timeout", why);
            DEFAULT_STOP_TIMEOUT
        });

        if mistakes.len() == before {
            specs.push(ProcessSpec {
                name: process.name,
                program,
                command: process.command,
                policy: Policy {
                    stop_signal,
                    stop_timeout,
                    restart,
                },
                working_directory: process.working_directory,
                environment: process.environment,
            });
        }
    }
    if mistakes.is_empty() {
        Ok(specs)
    } else {
        Err(mistakes)
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is missing; write for example name = \"my-app\"".to_owned());
    }
    if name.len() > NAME_MAX_BYTES {
        return Err(format!(
            "is {} bytes long; at most {NAME_MAX_BYTES} are allowed",
            name.len()
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':');
    match name.chars().find(|&c| !allowed(c)) {
        Some(odd) => Err(format!(
            "cannot hold {odd:?}; use letters, digits, '-', '_', '.', '@' and ':'"
        )),
        None => Ok(()),
    }
}

fn check_folder(folder: &Path) -> Result<(), String> {
    if !folder.is_absolute() {
        return Err(format!("{} is relative; write the whole path", folder.display()));
    }
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is no folder", folder.display())),
        Err(error) => Err(format!(
            "cannot use {}: {error}; create it, or correct the path",
            folder.display()
        )),
    }
}

fn check_environment(environment: &BTreeMap<String, String>, mut wrong: impl FnMut(String)) {
    for (key, value) in environment {
        if key.is_empty() || key.contains(['=', '\0']) {
            wrong(format!(
                "{key:?} is no name of a variable; it must not be empty and not hold '='"
            ));
        } else if value.contains('\0') {
            wrong(format!(
                "the value of {key} holds a NUL, which no environment can carry"
            ));
        }
    }
}

/// What the first word of `command` means: an absolute path as it is, a bare word by way of `path`.
///
/// A relative path with a slash is refused: it would mean something else in each working folder.
fn find_program(command: &[String], path: &OsStr) -> Result<PathBuf, String> {
    let Some(word) = command.first().filter(|word| !word.is_empty()) else {
        return Err("is empty; write for example command = [\"/usr/bin/my-app\", \"--flag\"]".to_owned());
    };
    if let Some(argument) = command.iter().find(|argument| argument.contains('\0')) {
        return Err(format!("{argument:?} holds a NUL, which no argument can carry"));
    }
    if word.starts_with('/') {
        return executable(Path::new(word)).map(|()| PathBuf::from(word));
    }
    if word.contains('/') {
        return Err(format!(
            "{word} is a relative path; write the whole path, or a bare name to look up in PATH"
        ));
    }
    path.as_bytes()
        .split(|&byte| byte == b':')
        .map(|folder| Path::new(OsStr::from_bytes(folder)))
        // An empty or relative entry means the current folder, which is nobody's intention here.
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(word))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| {
            format!(
                "{word} is not in PATH ({}); install it, or write its whole path",
                path.display()
            )
        })
}

fn executable(program: &Path) -> Result<(), String> {
    let shown = program.display();
    let found = std::fs::metadata(program)
        .map_err(|error| format!("cannot run {shown}: {error}; install it, or correct the path"))?;
    if !found.is_file() {
        return Err(format!(
            "cannot run {shown}: it is no file; name the program itself"
        ));
    }
    access(program, AccessFlags::X_OK)
        .map_err(|error| format!("cannot run {shown}: {}; make it executable", error.desc()))
}

fn stop_signal(text: Option<&str>) -> Result<i32, String> {
    let Some(text) = text else {
        return Ok(Signal::SIGTERM as i32);
    };
    let name = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    match Signal::from_str(&name) {
        // None of these ends a process that does not handle it.
        Ok(
            Signal::SIGSTOP
            | Signal::SIGTSTP
            | Signal::SIGTTIN
            | Signal::SIGTTOU
            | Signal::SIGCONT
            | Signal::SIGCHLD,
        ) => Err(format!(
            "{text} does not stop a process; SIGTERM, SIGINT or SIGQUIT do"
        )),
        Ok(signal) => Ok(signal as i32),
        Err(_) => Err(format!(
            "{text:?} is no signal; write for example SIGTERM, SIGINT or SIGQUIT"
        )),
    }
}

fn restart(text: Option<&str>) -> Result<Restart, String> {
    match text {
        None | Some("on-failure") => Ok(Restart::OnFailure),
        Some("always") => Ok(Restart::Always),
        Some("never") => Ok(Restart::Never),
        Some(other) => Err(format!(
            "{other:?} is not known; write on-failure, always or never"
        )),
    }
}

/// The chain of deadlines: what a process may take to stop, and to die when it does not, must fit into what the
/// guardian gives a whole drain. Otherwise a drain could fail although everything goes as configured.
fn check_stop_timeout(timeout: Duration, command_timeout: Duration) -> Result<Duration, String> {
    if timeout.is_zero() {
        return Err("must be longer than zero; write for example \"10s\"".to_owned());
    }
    if timeout + KILL_GRACE >= command_timeout {
        return Err(format!(
            "{} and {} to kill what is left must together be shorter than command-timeout ({}); shorten it, or lengthen command-timeout",
            humantime::format_duration(timeout),
            humantime::format_duration(KILL_GRACE),
            humantime::format_duration(command_timeout),
        ));
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug)]
    struct File {
        process: Vec<RawProcess>,
    }

    const LIMIT: Duration = Duration::from_secs(45);

    fn check(text: &str) -> Result<Vec<ProcessSpec>, Vec<String>> {
        let file: File = toml::from_str(text).unwrap();
        validate_with(file.process, LIMIT, OsStr::new("/usr/bin:/bin"))
    }

    #[test]
    fn a_short_entry_means_the_documented_defaults() {
        let specs = check("[[process]]\nname = 'a'\ncommand = ['sh', '-c', 'true']").unwrap();
        assert_eq!(specs.len(), 1);
        assert!(specs[0].program.is_absolute() && specs[0].program.ends_with("sh"));
        assert_eq!(specs[0].command, ["sh", "-c", "true"]);
        assert_eq!(
            specs[0].policy,
            Policy {
                stop_signal: 15,
                stop_timeout: Duration::from_secs(10),
                restart: Restart::OnFailure
            }
        );
    }

    #[test]
    fn everything_that_can_be_written_is_read() {
        let specs = check(
            "[[process]]\nname = 'a.b@c:1_2-3'\ncommand = ['/bin/sh']\nstop-signal = 'INT'\nstop-timeout = '2s'\n\
             restart = 'always'\nworking-directory = '/tmp'\nenvironment = { KEY = 'value' }",
        )
        .unwrap();
        assert_eq!(
            specs[0].policy,
            Policy {
                stop_signal: 2,
                stop_timeout: Duration::from_secs(2),
                restart: Restart::Always
            }
        );
        assert_eq!(specs[0].environment["KEY"], "value");
        assert_eq!(specs[0].working_directory.as_deref(), Some(Path::new("/tmp")));
    }

    #[test]
    fn every_mistake_is_named_with_its_place_and_its_remedy() {
        let mistakes = check(
            "[[process]]\n\
             [[process]]\nname = 'a b'\ncommand = ['nonsense-that-nobody-has']\n\
             [[process]]\nname = 'x'\ncommand = ['bin/x']\nstop-signal = 'SIGNOTHING'\nstop-timeout = '43s'\n\
             restart = 'sometimes'\nworking-directory = '/does/not/exist'\nenvironment = { 'A=B' = '' }\n\
             [[process]]\nname = 'x'\ncommand = ['/etc/passwd']\nstop-signal = 'STOP'\nstop-timeout = 5\n\
             working-directory = 'here'\n\
             [[process]]\nname = 'y'\ncommand = ['/does/not/exist']\nstop-timeout = '0s'",
        )
        .unwrap_err();
        let expected = [
            ("process #1: name: ", "write for example name ="),
            ("process #1: command: ", "write for example command ="),
            ("process \"a b\": name: cannot hold ' '", "use letters"),
            (
                "process \"a b\": command: nonsense-that-nobody-has is not in PATH (/usr/bin:/bin)",
                "install it",
            ),
            (
                "process \"x\": working-directory: cannot use /does/not/exist",
                "create it",
            ),
            ("process \"x\": environment: \"A=B\"", "must not"),
            (
                "process \"x\": command: bin/x is a relative path",
                "write the whole path",
            ),
            (
                "process \"x\": stop-signal: \"SIGNOTHING\"",
                "write for example SIGTERM",
            ),
            (
                "process \"x\": restart: \"sometimes\"",
                "write on-failure, always or never",
            ),
            (
                "process \"x\": stop-timeout: 43s and 2s to kill",
                "shorter than command-timeout (45s); shorten it",
            ),
            ("process \"x\": name: another process has it", "give each its own"),
            (
                "process \"x\": working-directory: here is relative",
                "write the whole path",
            ),
            (
                "process \"x\": command: cannot run /etc/passwd",
                "make it executable",
            ),
            ("process \"x\": stop-signal: STOP does not stop", "SIGTERM"),
            ("process \"x\": stop-timeout: ", "with a unit"),
            ("process \"y\": command: cannot run /does/not/exist", "install it"),
            ("process \"y\": stop-timeout: ", "longer than zero"),
        ];
        for (index, (start, remedy)) in expected.iter().enumerate() {
            let mistake = mistakes
                .get(index)
                .unwrap_or_else(|| panic!("{start} is missing"));
            assert!(
                mistake.starts_with(start) && mistake.contains(remedy),
                "{start}\n{mistake}"
            );
        }
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused() {
        let error = toml::from_str::<File>("[[process]]\nname = 'a'\ncomand = ['sh']")
            .unwrap_err()
            .to_string();
        assert!(error.contains("comand") && error.contains("line 3"), "{error}");
    }
}
