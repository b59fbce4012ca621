# A small package set. Its programs are those of the machine that it is used on.
#
# `inert`: nothing is a derivation and every path is known beforehand: for evaluation only. Otherwise derivations, which
# build with the machine's own /bin/sh.
{
  lib ? import ./lib.nix,
  system ? "x86_64-linux",
  inert ? false,
}:
let
  runCommand =
    name: env: script:
    if inert then
      env
      // {
        type = "derivation";
        inherit name;
        outPath = "/run/built/${name}";
      }
    else
      derivation (
        removeAttrs env [
          "meta"
          "passthru"
        ]
        // {
          inherit name;
          # Whatever it is for, it is built here.
          system = builtins.currentSystem or "x86_64-linux";
          builder = "/bin/sh";
          PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
          args = [
            "-euc"
            script
          ];
        }
      )
      // env.passthru or { }
      // {
        inherit name;
        meta = env.meta or { };
      };

  writeTextFile =
    {
      name,
      text,
      executable ? false,
      destination ? "",
      meta ? { },
    }:
    runCommand name
      {
        inherit text meta;
        passAsFile = [ "text" ];
      }
      ''
        mkdir -p "$(dirname "$out${destination}")"
        cp "$textPath" "$out${destination}"
        ${lib.optionalString executable "chmod +x \"$out${destination}\""}
      '';

  # A package whose programs are the machine's.
  package =
    name:
    if inert then
      {
        type = "derivation";
        inherit name;
        pname = name;
        version = "0";
        outPath = "/usr";
        meta.mainProgram = name;
      }
    else
      runCommand name {
        passthru = {
          pname = name;
          version = "0";
        };
        meta.mainProgram = name;
      } "mkdir -p $out; ln -s /usr/bin $out/bin; ln -s /usr/sbin $out/sbin";

  names = [
    "age"
    "bash"
    "cargo"
    "cargo-deny"
    "clippy"
    "coreutils"
    "deadnix"
    "etcd"
    "findutils"
    "getent"
    "git"
    "gnugrep"
    "gnused"
    "haproxy"
    "installShellFiles"
    "iproute2"
    "iputils"
    "jq"
    "just"
    "mypy"
    "netcat"
    "nixfmt"
    "nixfmt-rfc-style"
    "nixfmt-tree"
    "openssl"
    "postgresql"
    "protobuf"
    "python3"
    "redis"
    "rustc"
    "rustfmt"
    "rust-analyzer"
    "shellcheck"
    "sops"
    "systemd"
    "treefmt"
    "util-linux"
  ];

  pkgs =
    lib.genAttrs names package
    // lib.optionalAttrs inert { io-guardian = package "io-guardian"; }
    // {
      inherit
        lib
        runCommand
        system
        writeTextFile
        ;
      path = ./.;
      runtimeShell = "/usr/bin/sh";
      # Where a unit's generated scripts lie.
      scriptRoot = "/etc/rendered";

      stdenv = rec {
        hostPlatform = {
          inherit system;
          isLinux = true;
        };
        buildPlatform = hostPlatform // {
          canExecute = other: other.system == system;
        };
        inherit mkDerivation;
      };
      callPackage =
        f: args:
        let
          function = if builtins.isFunction f then f else import f;
          wanted = builtins.functionArgs function;
        in
        function (builtins.intersectAttrs wanted pkgs // args);

      writeText = name: text: writeTextFile { inherit name text; };
      writeShellScript =
        name: text:
        writeTextFile {
          inherit name;
          text = "#!/bin/bash\n${text}";
          executable = true;
        };
      writeShellApplication =
        {
          name,
          text,
          runtimeInputs ? [ ],
          meta ? { },
        }:
        writeTextFile {
          inherit name;
          executable = true;
          destination = "/bin/${name}";
          text = ''
            #!/bin/bash
            set -o errexit
            set -o nounset
            set -o pipefail
            ${lib.optionalString (
              runtimeInputs != [ ]
            ) ''export PATH="${lib.makeBinPath runtimeInputs}:$PATH"''}
            ${text}
          '';
          meta = {
            mainProgram = name;
          }
          // meta;
        };

      formats.toml =
        { }:
        {
          type =
            let
              value =
                lib.types.oneOf [
                  lib.types.bool
                  lib.types.int
                  lib.types.float
                  lib.types.str
                  lib.types.path
                  (lib.types.attrsOf value)
                  (lib.types.listOf value)
                ]
                // {
                  description = "TOML value";
                };
            in
            value;
          generate = name: value: pkgs.writeText name (import ./toml.nix { inherit lib; } value);
        };

      mkShell =
        attrs:
        runCommand (attrs.name or "shell") {
          packages = map (p: "${p}") (attrs.packages or [ ]);
        } "touch $out";
      inherit mkDerivation;

      # What cargo would leave, with programs that do nothing and say nothing: nothing is compiled here.
      rustPlatform.buildRustPackage =
        attrs:
        let
          a = if builtins.isFunction attrs then attrs (throw "finalAttrs is not in the stand-in") else attrs;
          cargo = fromTOML (builtins.readFile (dirOf a.cargoLock.lockFile + "/Cargo.toml"));
        in
        runCommand "${a.pname}-${a.version}"
          {
            passthru = {
              inherit (a) pname version;
            }
            // a.passthru or { };
            meta = a.meta or { };
          }
          (lib.concatMapStrings (b: "mkdir -p $out/bin; ln -s /usr/bin/true $out/bin/${b.name}\n") cargo.bin);

      # Evaluates every node, and "builds" to their unit files and the test's script, which is compiled but not run.
      testers.runNixOSTest =
        test:
        let
          given = if builtins.isPath test || builtins.isString test then import test else test;
          t =
            if builtins.isFunction given then
              given {
                inherit lib pkgs;
                config = throw "config is not in the stand-in for a test";
              }
            else
              given;
          number = lib.listToAttrs (lib.imap1 (i: n: lib.nameValuePair n i) (builtins.attrNames t.nodes));
          node =
            name: module:
            (import ./nixos.nix {
              inherit system;
              specialArgs = {
                inherit nodes;
              }
              // t.node.specialArgs or { };
              modules = [
                module
                (t.defaults or { })
                {
                  options.virtualisation = lib.mkOption {
                    type = lib.types.attrs;
                    default = { };
                  };
                  config = {
                    boot.isContainer = true;
                    networking = {
                      hostName = lib.mkDefault name;
                      primaryIPAddress = "192.168.1.${toString number.${name}}";
                    };
                  };
                }
              ];
            }).config;
          nodes = builtins.mapAttrs node t.nodes;
          script = if builtins.isFunction t.testScript then t.testScript { inherit nodes; } else t.testScript;
        in
        runCommand "vm-test-${t.name}"
          {
            # Assertions that fail are errors, as they are in a host.
            systems = map (n: "${n.system.build.toplevel}") (builtins.attrValues nodes);
            inherit script;
            passAsFile = [ "script" ];
            passthru = {
              inherit nodes;
              config.nodes = nodes;
            };
          }
          ''
            mkdir -p $out
            cp $scriptPath $out/test.py
            python3 -m py_compile $out/test.py
            rm -rf $out/__pycache__
          '';
      nixosTest = pkgs.testers.runNixOSTest;
    };

  mkDerivation =
    a:
    throw "stdenv.mkDerivation is not in the stand-in (asked for by ${
      a.name or a.pname or "a package without a name"
    })";
in
pkgs
