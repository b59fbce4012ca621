//! Settings and their mistakes.

use super::*;

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let key = write(folder.path(), "key", &"k".repeat(40));
    let file = write(
        folder.path(),
        "guardian.toml",
        &format!("port = 1234\nhost = '::1'\ncommand-timeout = '20s'\npsk-file = {key:?}\n"),
    );
    let args = ServeArgs {
        port: Some(4321),
        config: Some(file),
        ..ServeArgs::default()
    };
    let config = Config::read(&args).unwrap();
    assert_eq!((config.port, config.host.as_str()), (4321, "::1"));
    assert_eq!(config.command_timeout, Duration::from_secs(20));
    assert_eq!(config.target, "io-databases.target");
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        "guardian.toml",
        "host = 'a b'\nport = 70000\nprot = 1\ncommand-timeout = 45\nunits = 'pods'\ntarget = 'databases'\npsk-file = '/nonexistent/key'\n",
    );
    let failure = Config::read(&ServeArgs {
        config: Some(file),
        ..ServeArgs::default()
    })
    .unwrap_err();
    assert_eq!(failure.code, 78);
    let all = failure.messages.join("\n");
    for part in [
        "guardian.toml:2: port: ",
        "guardian.toml:3: prot is no setting; there are host, port",
        "guardian.toml:4: command-timeout: ",
        "guardian.toml:5: units: ",
        "host: \"a b\" is no address",
        "target: \"databases\" is no unit name",
        "/nonexistent/key",
    ] {
        assert!(all.contains(part), "{part} is not in\n{all}");
    }
    assert!(failure.messages.iter().all(|m| !m.contains('\n')), "{all}");
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_place() {
    let failure = parse_file("port = \nhost", "guardian.toml", &mut Vec::new()).unwrap_err();
    assert!(
        failure.messages[0].contains("guardian.toml: TOML parse error at line 2"),
        "{:?}",
        failure.messages
    );
}

#[test]
fn a_check_forgives_a_key_that_is_not_there_yet_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let check = |psk_file: PathBuf| {
        Config::read(&ServeArgs {
            psk_file: vec![psk_file],
            check_config: true,
            ..ServeArgs::default()
        })
    };
    assert!(check(folder.path().join("absent")).is_ok_and(|c| c.keys.is_none()));
    assert_eq!(
        check(write(folder.path(), "short", "short")).unwrap_err().code,
        78
    );
}

#[test]
fn a_state_folder_must_be_there_except_for_a_check() {
    let folder = tempfile::tempdir().unwrap();
    let key = write(folder.path(), "key", &"k".repeat(40));
    let read = |state_dir: PathBuf, check_config| {
        Config::read(&ServeArgs {
            psk_file: vec![key.clone()],
            state_dir: Some(state_dir),
            check_config,
            ..ServeArgs::default()
        })
        .map_err(|failure| (failure.code, failure.messages.join("\n")))
    };
    let absent = folder.path().join("absent");
    assert!(read(folder.path().to_owned(), false).is_ok());
    assert!(read(absent.clone(), true).is_ok());
    let (code, said) = read(absent.clone(), false).unwrap_err();
    assert_eq!(code, 78);
    for part in [absent.to_str().unwrap(), "create the folder", "StateDirectory="] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    for check in [false, true] {
        for no_folder in [key.clone(), key.join("below")] {
            let (code, said) = read(no_folder, check).unwrap_err();
            assert!(
                code == 78 && said.to_lowercase().contains("not a directory"),
                "{said}"
            );
        }
    }
}
