//! Where a setting's value is read from: its flag, else its environment variable, else the settings
//! file, else its default.

mod common;

use std::process::{Command, Stdio};

use common::{Folder, Hub};

/// A hub with this settings file, these variables and these flags.
fn hub(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Hub {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.env("TABCAST_CONFIG", path).envs(variables.iter().copied()).args(flags);
    // The file has been read once the hub listens.
    Hub::start_with(&mut command)
}

/// Exit code, stdout and stderr of a hub that does not start, with this settings file.
fn refused(file: &str) -> (Option<i32>, String) {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .args(["--config", &path, "--listen", "127.0.0.1:0", "--journal", "memory"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&path), "the file is not named in {stderr}");
    (output.status.code(), stderr)
}

const ANYWHERE: &str = "listen = '127.0.0.1:0'\njournal = 'memory'\n";

/// The longest body that this hub takes.
fn max_body(hub: &Hub) -> usize {
    let problem = hub.post("", "text/plain", vec![b'x'; 5_000]).problem(413);
    usize::try_from(problem["limit"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file = format!("{ANYWHERE}max-body = '1KiB'");
    assert_eq!(max_body(&hub(&file, &[], &[])), 1024);
    let variables = [("TABCAST_MAX_BODY", "2KiB")];
    assert_eq!(max_body(&hub(&file, &variables, &[])), 2048);
    assert_eq!(max_body(&hub(&file, &variables, &["--max-body", "3KiB"])), 3072);
}

#[test]
fn a_setting_is_a_string_a_number_a_boolean_or_a_list() {
    let file = format!(
        "{ANYWHERE}# As in any TOML file.\nmax-event-name = 3\nhide-data = true\n\
         allow-origin = ['https://a.example', 'https://b.example']\n"
    );
    let hub = hub(&file, &[], &["--max-channel-name", "4"]);
    assert_eq!(hub.post("?event=long", "text/plain", "x").problem(422)["limit"], 3);
    for origin in ["https://a.example", "https://b.example"] {
        let headers = ["Content-Type: text/plain", &format!("Origin: {origin}")];
        assert_eq!(hub.send("POST", "/messages", &headers, b"a secret").status, 201);
    }
    let lines = hub.wait_for_logs(&["message published"], 2);
    assert!(lines.iter().all(|line| !line.contains("secret")), "{lines:?}");
}

#[test]
fn a_variable_says_yes_or_no_in_any_of_the_usual_words() {
    let hides = |file: &str, variables: &[(&str, &str)]| {
        let hub = hub(&format!("{ANYWHERE}{file}"), variables, &[]);
        hub.publish("a secret");
        !hub.wait_for_log(&["message published"]).contains("secret")
    };
    for yes in ["1", "true", "TRUE", "yes", "on"] {
        assert!(hides("", &[("TABCAST_HIDE_DATA", yes)]), "{yes}");
        assert!(hides(&format!("hide-data = '{yes}'"), &[]), "{yes}");
    }
    for no in ["0", "false", "no", "off"] {
        assert!(!hides("hide-data = true", &[("TABCAST_HIDE_DATA", no)]), "{no}");
        assert!(!hides(&format!("hide-data = '{no}'"), &[]), "{no}");
    }
    assert!(hides("hide-data = 1", &[]) && !hides("hide-data = 0", &[]));
    assert!(hides("hide-data = true", &[("TABCAST_HIDE_DATA", "")]));
    assert!(!hides("", &[("TABCAST_HIDE_DATA", "")]));
}

#[test]
fn an_empty_variable_counts_as_not_set_whatever_it_is_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let names = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap());
    let variables: Vec<_> = names.filter(|name| *name != "TABCAST_CONFIG").map(|name| (name, "")).collect();
    assert!(variables.len() > 20, "{help}");
    let hub = hub(&format!("{ANYWHERE}max-body = '1KiB'"), &variables, &[]);
    assert_eq!(max_body(&hub), 1024);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.env("TABCAST_CONFIG", "").args(["--listen", "127.0.0.1:0", "--journal", "memory"]);
    Hub::start_with(&mut command).publish("started");
}

#[test]
fn a_list_may_have_spaces_after_its_commas_wherever_it_stands() {
    let lists = [
        ("listen", "127.0.0.1:0, 127.0.0.1:0"),
        ("allow-host", "a.example, b.example"),
        ("allow-origin", "https://a.example, https://b.example"),
        ("trust-proxy", "192.0.2.1, 127.0.0.1"),
    ];
    let works = |hub: &Hub| {
        hub.wait_for_logs(&["listening on http://127.0.0.1:"], 2);
        assert_eq!(hub.send("GET", "/", &["Host: b.example"], b"").status, 200);
        let headers = ["Origin: https://b.example", "Content-Type: text/plain"];
        assert_eq!(hub.send("POST", "/messages", &headers, b"x").status, 201);
        let _stream = hub.watch("/events", &["X-Forwarded-For: 203.0.113.7"]);
        hub.wait_for_log(&["subscriber connected", "address=203.0.113.7:"]);
    };
    let flags: Vec<_> =
        lists.iter().flat_map(|(name, list)| [format!("--{name}"), (*list).to_owned()]).collect();
    works(&hub("journal = 'memory'", &[], &flags.iter().map(String::as_str).collect::<Vec<_>>()));
    let variable = |name: &str| format!("TABCAST_{}", name.replace('-', "_").to_uppercase());
    let variables: Vec<_> = lists.iter().map(|(name, list)| (variable(name), *list)).collect();
    let variables: Vec<_> = variables.iter().map(|(name, list)| (&**name, *list)).collect();
    works(&hub("journal = 'memory'", &variables, &[]));
    let keys: String = lists.iter().map(|(name, list)| format!("{name} = '{list}'\n")).collect();
    works(&hub(&format!("journal = 'memory'\n{keys}"), &[], &[]));
    // These are all the lists there are.
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(help.matches("separate several by commas").count(), lists.len());
}

#[test]
fn sqlites_name_for_memory_is_no_file() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0", "--journal", ":memory:"]).current_dir(&folder.path);
    Hub::start_with(&mut command).publish("in memory");
    assert_eq!(std::fs::read_dir(&folder.path).unwrap().count(), 0);
}

#[test]
fn an_unknown_key_is_named_and_the_hub_does_not_start() {
    let (code, stderr) = refused("max-bdy = '1KiB'");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("`max-bdy` is unknown"), "{stderr}");
    for own in ["config", "help", "version"] {
        assert!(refused(&format!("{own} = 'x'")).1.contains(&format!("`{own}` is unknown")));
    }
}

#[test]
fn a_bad_value_is_named_with_its_flag_and_the_file() {
    for (file, what) in [
        ("max-body = 'much'", "'much' for '--max-body <SIZE>'"),
        ("max-channels = -1", "'-1' for '--max-channels <COUNT>'"),
        ("hide-data = 7", "'7' for '--hide-data'"),
        ("max-body = 1.5", "`max-body` must be"),
        ("max-body = [['1KiB']]", "`max-body` must be"),
        ("[max-body]\nx = 1", "`max-body` must be"),
        ("max-body = ", "line 1, column 12"),
        ("max-body = '1KiB'\nmax-body = '2KiB'", "line 2"),
    ] {
        let (code, stderr) = refused(file);
        assert_eq!(code, Some(2), "{file}: {stderr}");
        assert!(stderr.contains(what), "{file}: {stderr}");
    }
}

#[test]
fn a_settings_file_that_is_not_there_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tabcast")).args(["--config", "nowhere.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("nowhere.toml: No such file"), "{stderr}");
}

#[test]
fn settings_that_do_not_go_together_are_refused_wherever_they_are_from() {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    std::fs::write(&path, "retry-min = '3s'").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .args(["--config", &path, "--journal", "memory", "--retry-max", "2s"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--retry-min must not be more"));
}

#[test]
fn the_log_filter_names_parts_of_the_program_and_how_much_of_each_is_logged() {
    let journal = ["--listen", "127.0.0.1:0", "--journal", "memory"];
    // The hub says that it listens in `tabcast`, that a message was published in `tabcast::api::publish`.
    let hub = hub("", &[("TABCAST_LOG", "warn,tabcast=info,tabcast::api=off,tabcast::net=debug")], &journal);
    hub.publish("not in the log");
    let mut stream = hub.watch("/events?last=1", &[]);
    assert_eq!(stream.data(), "not in the log");
    hub.wait_for_log(&["subscriber connected"]);
    // A debug line of `tabcast::net`.
    drop(hub.raw("no HTTP\r\n\r\n"));
    hub.wait_for_log(&["DEBUG connection failed"]);
    assert!(!hub.log().iter().any(|line| line.contains("message published")), "{:?}", hub.log());
}

#[test]
fn parts_that_the_log_filter_does_not_name_go_by_the_log_level() {
    let flags = ["--listen", "127.0.0.1:0", "--journal", "memory", "--log", "tabcast::net=debug"];
    let hub = hub("", &[], &flags);
    hub.publish("in the log");
    hub.wait_for_log(&["INFO message published"]);
    drop(hub.raw("no HTTP\r\n\r\n"));
    hub.wait_for_log(&["DEBUG connection failed"]);
}

// The verb `check`.

/// What `tabcast check` prints with this settings file, these variables and these flags, and its exit code.
fn check(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> (Option<i32>, String, String) {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    let output = command.args(["--config", &path]).args(flags).arg("check").envs(variables.iter().copied());
    let output = output.stdin(Stdio::null()).current_dir(&folder.path).output().unwrap();
    let printed = |bytes| String::from_utf8(bytes).unwrap().replace(&path, "PATH");
    assert_eq!(std::fs::read_dir(&folder.path).unwrap().count(), 1, "it makes no file");
    (output.status.code(), printed(output.stdout), printed(output.stderr))
}

#[test]
fn check_prints_each_setting_its_value_and_where_that_is_from() {
    let file = "max-body = '2MiB'\nmax-event-name = 128\nallow-host = ['a.example', 'b.example']\n\
                max-channels = 7\nmax-batch = 8\n\
                [[channel]]\nmatch = 'cursor.>'\nmessages = 1\nage = '1m'\n\
                [[channel]]\nmatch = 'x'\nage = '1h'";
    let variables = [("TABCAST_MAX_CHANNELS", "5"), ("TABCAST_MAX_BATCH", "6"), ("TABCAST_HIDE_DATA", "yes")];
    let (code, report, _) = check(file, &variables, &["--max-batch", "4", "--anonymous", ""]);
    assert_eq!(code, Some(0));
    for line in [
        "listen: 127.0.0.1:3000 (default)",
        "config: PATH (flag)",
        "max-body: 2MiB (file PATH)",
        // As by default, but the file says so.
        "max-event-name: 128 (file PATH)",
        "allow-host: a.example, b.example (file PATH)",
        "max-channels: 5 (variable TABCAST_MAX_CHANNELS)",
        "max-batch: 4 (flag)",
        "anonymous:  (flag)",
        "tokens: not set",
        "max-connections-per-address: not set",
        "publish-rate: 1000/s (default)",
        "connect-rate: 1000/s (default)",
        "[[channel]]: match = cursor.>, messages = 1, age = 1m; match = x, age = 1h (file PATH)",
    ] {
        assert!(report.lines().any(|printed| printed == line), "{line} is not in\n{report}");
    }
    assert!(report.contains("hide-data: yes (variable TABCAST_HIDE_DATA)"), "{report}");
    // Every setting of the hub's has a line.
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for name in help.split("[env: TABCAST_").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()) {
        let name = name.to_lowercase().replace('_', "-");
        assert!(report.lines().any(|line| line.starts_with(&format!("{name}: "))), "{name}");
    }
}

#[test]
fn check_says_how_many_tokens_a_file_has_and_none_of_them() {
    let folder = Folder::new();
    let tokens = folder.file("tokens");
    let (secret, hash) = tabcast::auth::tokens::new().unwrap();
    std::fs::write(&tokens, format!("ci {hash} publish=build.>\n")).unwrap();
    let (code, report, _) = check("", &[], &["--tokens", &tokens, "--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(0));
    assert!(report.contains(&format!("tokens: {tokens} (flag)\n")), "{report}");
    assert!(report.ends_with("\ntokens read: 1\n"), "{report}");
    assert!(!report.contains(&secret) && !report.contains(&hash), "{report}");
}

#[test]
fn check_exits_with_2_and_the_error_where_the_hub_would_not_start() {
    for (file, flags, what) in [
        ("max-bdy = '1KiB'", &[][..], "`max-bdy` is unknown"),
        ("max-body = 'much'", &[], "'much' for '--max-body <SIZE>'"),
        ("retry-min = '9s'", &[], "--retry-min must not be more"),
        ("", &["--tokens", "none"], "--tokens none: No such file"),
        ("", &["--listen", "127.0.0.1:0,0.0.0.0:0"], "0.0.0.0:0 can be reached from other machines"),
        ("", &["--publish-rate", "5/d"], "give it as in 50/s"),
    ] {
        let (code, report, error) = check(file, &[], flags);
        assert!(code == Some(2) && report.is_empty(), "{file}: {report}");
        assert!(error.contains(what), "{file}: {error}");
    }
}
