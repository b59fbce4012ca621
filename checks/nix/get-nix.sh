#!/usr/bin/env bash
# get-nix.sh FOLDER [SUITE] - a Nix for machines that have none.
#
# Unpacks Debian SUITE's nix-bin (trixie: Nix 2.26) and its libraries under FOLDER. Nothing is installed, no maintainer
# script runs, and all that Nix writes is in FOLDER, too: store, state, configuration. FOLDER/bin/{nix,nix-instantiate,…}
# start the unpacked programs with the unpacked loader. Does nothing when FOLDER has a Nix already.
set -euo pipefail

folder=$(realpath -m "$1")
suite=${2:-trixie}

if [[ -x $folder/bin/nix ]] && "$folder/bin/nix" --version 2>/dev/null; then
    exit 0
fi

# The mirror that this machine uses already.
mirror=${DEBIAN_MIRROR:-$(
    # shellcheck disable=SC2016 # apt's variable.
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sort | uniq -c | sort -rn |
        awk '$2 !~ /security|cloud|node/ { print $2; exit }'
)}
key=/usr/share/keyrings/debian-archive-keyring.gpg

# A half-unpacked one does not count.
rm -rf "$folder"
mkdir -p "$folder"/{apt/state/lists/partial,apt/cache/archives/partial,root,bin,etc,state,log,store}
: >"$folder/apt/status"
echo "deb [signed-by=$key] $mirror $suite main" >"$folder/apt/sources.list"
apt=(
    apt-get -q
    -o "Dir::State=$folder/apt/state"
    -o "Dir::State::status=$folder/apt/status"
    -o "Dir::Cache=$folder/apt/cache"
    -o "Dir::Etc::sourcelist=$folder/apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null
    -o APT::Sandbox::User=root
    -o Acquire::Languages=none
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
    -o APT::Install-Recommends=false
    -o Debug::NoLocking=true
)
"${apt[@]}" update
"${apt[@]}" install --yes --download-only nix-bin
for package in "$folder"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done
rm -rf "$folder/apt"

libraries=$(find "$folder/root" -type d -path '*/lib/*-linux-gnu' | tr '\n' ':')
loader=$(find "$folder/root" -name 'ld-linux-*.so.*' | head -n 1)

printf '%s\n' \
    'experimental-features = nix-command flakes' \
    'build-users-group =' \
    'sandbox = false' \
    'substituters =' \
    'warn-dirty = false' \
    'use-registries = false' \
    >"$folder/etc/nix.conf"

for tool in nix-instantiate nix-store nix-build nix-hash nix; do
    # Its own executable is the loader, so it must be told where the programs are that it starts itself.
    cat >"$folder/bin/$tool" <<WRAPPER
#!/bin/sh
export NIX_STORE_DIR="\${NIX_STORE_DIR:-$folder/store}" NIX_STATE_DIR="\${NIX_STATE_DIR:-$folder/state}"
export NIX_LOG_DIR="\${NIX_LOG_DIR:-$folder/log}" NIX_CONF_DIR="\${NIX_CONF_DIR:-$folder/etc}" NIX_BIN_DIR="$folder/bin"
exec "$loader" --argv0 $tool --library-path "${libraries%:}" "$folder/root/usr/bin/nix" "\$@"
WRAPPER
    chmod +x "$folder/bin/$tool"
done
"$folder/bin/nix" --version
