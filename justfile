# `just` lists what can be done here. Each recipe is one line that works without just, too.

_list:
    @just --list --unsorted

# The whole story on one machine, in under a minute, with no root
demo *ARGS:
    cargo run -- demo {{ ARGS }}

# Everything that CI runs; `just check --fast`, `just check test`
check *ARGS:
    ./checks/run {{ ARGS }}

# Unit, integration and property tests
test *ARGS:
    cargo test --locked {{ ARGS }}

# Put the source in order
fmt:
    cargo fmt

# Scenarios on a throw-away host with a real systemd; `just systemd -k superseded` for some
systemd *ARGS:
    cargo build --locked --bins
    /usr/bin/python3 checks/systemd/run_scenarios.py {{ ARGS }}

# Scenarios on a fleet of real systemd hosts; `just lab wrong_key`, `just lab --list`, `just lab --keep` for shells in the hosts
lab *ARGS:
    cargo build --locked --bins
    ./checks/lab/run {{ ARGS }}

# A shell in a throw-away host with a real systemd
shell:
    /usr/bin/python3 checks/systemd/host.py --shell

# Figures for docs/BENCHMARKS.md (release build, needs root)
bench *ARGS:
    ./checks/bench {{ ARGS }}

# Fuzz the codec for ten minutes (needs cargo-fuzz and a nightly compiler)
fuzz SECONDS="600":
    cargo +nightly fuzz run codec -- -max_total_time={{ SECONDS }} -max_len=8192
