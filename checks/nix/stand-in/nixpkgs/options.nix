# The slice of NixOS and sops-nix that this project's modules and hosts read and write: the same names, types and
# defaults and, where the modules depend on it, the same effects (PostgreSQL's and Redis' units, the port behind
# openFirewall). Written from the documented behaviour of nixpkgs 26.05 and sops-nix of June 2026.
#
# What NixOS declares and this does not is an error ("The option `x' does not exist"): whoever starts to use more of
# NixOS adds its slice here.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkIf
    mkMerge
    mkOption
    mkEnableOption
    types
    ;

  opt = type: default: mkOption { inherit type default; };
  list = t: opt (types.listOf t) [ ];
  lines = opt types.lines "";

  # "postgresql" without a suffix is an error in NixOS, too.
  unitName = types.strMatching "[a-zA-Z0-9@%:_.\\-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)";
  # One list among the definitions makes a list of all; else they must be equal.
  unitOption = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: defs:
      let
        vs = map (d: d.value) defs;
      in
      if builtins.any builtins.isList vs then
        lib.concatMap lib.toList vs
      else if builtins.all (v: v == builtins.head vs) vs then
        builtins.head vs
      else
        throw "The option `${builtins.concatStringsSep "." loc}' has conflicting definition values";
  };
  oneOf =
    name: values: v:
    !(v ? ${name})
    || builtins.elem (v.${name}.content or v.${name}) values
    || builtins.trace "Systemd service field `${name}' cannot have value `${toString v.${name}}'" false;
  checkService =
    v:
    oneOf "Type" [
      "exec"
      "simple"
      "forking"
      "oneshot"
      "dbus"
      "notify"
      "notify-reload"
      "idle"
    ] v
    && oneOf "Restart" [ "no" "on-success" "on-failure" "on-abnormal" "on-abort" "always" ] v;

  dependencies = [
    "requires"
    "wants"
    "upholds"
    "after"
    "before"
    "bindsTo"
    "partOf"
    "conflicts"
    "requisite"
    "onFailure"
    "onSuccess"
  ];
  installs = [
    "wantedBy"
    "requiredBy"
    "upheldBy"
    "aliases"
  ];

  commonUnit = { config, options, ... }: {
    options = lib.genAttrs (dependencies ++ installs) (_: list unitName) // {
      enable = opt types.bool true;
      overrideStrategy = opt (types.enum [
        "asDropinIfExists"
        "asDropin"
      ]) "asDropinIfExists";
      description = opt types.singleLineStr "";
      documentation = list types.str;
      unitConfig = opt (types.attrsOf unitOption) { };
      startLimitBurst = mkOption { type = types.int; };
      startLimitIntervalSec = mkOption { type = types.int; };
      restartTriggers = list types.unspecified;
      reloadTriggers = list types.unspecified;
    };
    config.unitConfig =
      let
        upper = s: lib.toUpper (builtins.substring 0 1 s) + builtins.substring 1 (-1) s;
        set = builtins.filter (n: config.${n} != [ ]) dependencies;
      in
      builtins.listToAttrs (
        map (n: {
          name = upper n;
          value = toString config.${n};
        }) set
      )
      // lib.optionalAttrs (config.description != "") { Description = config.description; }
      // lib.optionalAttrs (config.documentation != [ ]) {
        Documentation = toString config.documentation;
      }
      // lib.optionalAttrs options.startLimitBurst.isDefined {
        StartLimitBurst = toString config.startLimitBurst;
      }
      // lib.optionalAttrs options.startLimitIntervalSec.isDefined {
        StartLimitIntervalSec = toString config.startLimitIntervalSec;
      };
  };

  service = { name, config, ... }: {
    imports = [ commonUnit ];
    options = {
      environment = opt (types.attrsOf (
        types.nullOr (
          types.oneOf [
            types.str
            types.path
            types.package
          ]
        )
      )) { };
      path = list (types.either types.package types.str);
      serviceConfig = opt (types.addCheck (types.attrsOf unitOption) checkService) { };
      confinement = {
        enable = mkEnableOption "a chroot of the closure";
        mode = opt (types.enum [
          "full-apivfs"
          "chroot-only"
        ]) "full-apivfs";
        packages = list types.unspecified;
      };
      script = lines;
      scriptArgs = opt types.str "";
      preStart = lines;
      postStart = lines;
      reload = lines;
      preStop = lines;
      postStop = lines;
      enableStrictShellChecks = opt types.bool false;
      restartIfChanged = opt types.bool true;
      reloadIfChanged = opt types.bool false;
      stopIfChanged = opt types.bool true;
      notSocketActivated = opt types.bool false;
      startAt = mkOption {
        type = types.either types.str (types.listOf types.str);
        default = [ ];
        apply = lib.toList;
      };
      # Not in NixOS: the texts behind the paths of generated scripts, for checks to write and to lint.
      scripts = mkOption {
        type = types.attrsOf types.str;
        default = { };
        internal = true;
      };
    };
    config =
      let
        job =
          field: exec: args:
          mkIf (config.${field} != "") {
            scripts."${name}-${args.suffix}" = "#!/usr/bin/env bash\nset -e\n\n${config.${field}}\n";
            serviceConfig.${exec} =
              (if args.list or false then lib.singleton else lib.id)
                "${pkgs.scriptRoot}/unit-script-${name}-${args.suffix}/bin/${name}-${args.suffix}${args.extra or ""}";
          };
      in
      mkMerge [
        (job "script" "ExecStart" {
          suffix = "start";
          extra = lib.optionalString (config.scriptArgs != "") " ${config.scriptArgs}";
        })
        (job "preStart" "ExecStartPre" {
          suffix = "pre-start";
          list = true;
        })
        (job "postStart" "ExecStartPost" {
          suffix = "post-start";
          list = true;
        })
        (job "reload" "ExecReload" { suffix = "reload"; })
        (job "preStop" "ExecStop" { suffix = "pre-stop"; })
        (job "postStop" "ExecStopPost" { suffix = "post-stop"; })
        {
          environment.PATH =
            mkIf (config.path != [ ])
              "${lib.makeBinPath config.path}:${lib.concatMapStringsSep ":" (p: "${p}/sbin") config.path}";
          path = lib.mkAfter [
            pkgs.coreutils
            pkgs.findutils
            pkgs.gnugrep
            pkgs.gnused
            pkgs.systemd
          ];
        }
      ];
  };
  unitType =
    section:
    types.attrsOf (
      types.submodule [
        commonUnit
        (lib.optionalAttrs (section != null) { options.${section} = opt (types.attrsOf unitOption) { }; })
      ]
    );

  # What NixOS modules get as their argument `utils`.
  utils = rec {
    escapeSystemdExecArg =
      arg:
      let
        text =
          if builtins.isPath arg then
            "${arg}"
          else if builtins.isString arg || lib.isDerivation arg then
            "${arg}"
          else if builtins.isInt arg || builtins.isFloat arg then
            toString arg
          else
            throw "escapeSystemdExecArg only allows strings, paths, numbers and derivations";
      in
      builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON text);
    escapeSystemdExecArgs = lib.concatMapStringsSep " " escapeSystemdExecArg;
  };

  portRange = types.attrsOf types.port;
  ports = {
    allowedTCPPorts = mkOption {
      type = types.listOf types.port;
      default = [ ];
      apply = ps: lib.unique (builtins.sort builtins.lessThan ps);
    };
    allowedUDPPorts = mkOption {
      type = types.listOf types.port;
      default = [ ];
      apply = ps: lib.unique (builtins.sort builtins.lessThan ps);
    };
    allowedTCPPortRanges = list portRange;
    allowedUDPPortRanges = list portRange;
  };

  cfg = config;
  secret = { name, config, ... }: {
    options = {
      name = opt types.str name;
      key = opt types.str name;
      path = opt types.str (
        if config.neededForUsers then
          "/run/secrets-for-users/${config.name}"
        else
          "/run/secrets/${config.name}"
      );
      format = opt (types.enum [
        "yaml"
        "json"
        "binary"
        "dotenv"
        "ini"
      ]) "yaml";
      mode = opt types.str "0400";
      owner = opt (types.nullOr types.str) null;
      uid = opt (types.nullOr types.int) 0;
      group = opt (types.nullOr types.str) (
        if config.owner != null then cfg.users.users.${config.owner}.group else null
      );
      gid = opt (types.nullOr types.int) 0;
      sopsFile = opt types.path cfg.sops.defaultSopsFile;
      sopsFileHash = mkOption {
        type = types.str;
        readOnly = true;
        default = builtins.hashFile "sha256" config.sopsFile;
      };
      restartUnits = list types.str;
      reloadUnits = list types.str;
      neededForUsers = opt types.bool false;
    };
  };

  redisServer = { name, config, ... }: {
    options = {
      enable = mkEnableOption "this Redis server";
      user = opt types.str (redisName name);
      group = opt types.str config.user;
      port = opt types.port (if name == "" then 6379 else 0);
      openFirewall = opt types.bool false;
      bind = opt (types.nullOr types.str) "127.0.0.1";
      unixSocket = opt (types.nullOr types.path) "/run/${redisName name}/redis.sock";
      databases = opt types.int 16;
      requirePass = opt (types.nullOr types.str) null;
      requirePassFile = opt (types.nullOr types.path) null;
      settings = opt (types.attrsOf types.anything) { };
    };
  };
  inherit (config.services) etcd;
  redisName = n: "redis" + lib.optionalString (n != "") "-${n}";
  redisServers = lib.filterAttrs (_: s: s.enable) config.services.redis.servers;
in
{
  _file = "stand-in/nixpkgs/options.nix";

  options = {
    assertions = list types.unspecified;
    warnings = list types.str;
    meta = opt types.attrs { };

    systemd = {
      package = opt types.package pkgs.systemd;
      globalEnvironment = opt (types.attrsOf types.unspecified) { };
      services = opt (types.attrsOf (types.submodule service)) { };
      targets = opt (unitType null) { };
      timers = opt (unitType "timerConfig") { };
      sockets = opt (unitType "socketConfig") { };
      paths = opt (unitType "pathConfig") { };
      slices = opt (unitType "sliceConfig") { };
      tmpfiles.rules = list types.str;
    };

    networking = {
      hostName = opt types.str "nixos";
      enableIPv6 = opt types.bool true;
      domain = opt (types.nullOr types.str) null;
      primaryIPAddress = opt types.str "";
      extraHosts = lines;
      hosts = opt (types.attrsOf (types.listOf types.str)) { };
      nftables.enable = opt types.bool false;
      firewall = ports // {
        enable = opt types.bool true;
        backend = opt (types.enum [
          "iptables"
          "nftables"
          "firewalld"
        ]) (if config.networking.nftables.enable then "nftables" else "iptables");
        interfaces = opt (types.attrsOf (types.submodule { options = ports; })) { };
        trustedInterfaces = list types.str;
        extraCommands = lines;
        extraStopCommands = lines;
        extraInputRules = lines;
      };
    };

    environment = {
      systemPackages = list types.package;
      variables = opt (types.attrsOf types.unspecified) { };
      sessionVariables = opt (types.attrsOf types.unspecified) { };
      etc = opt (types.attrsOf (
        types.submodule (
          { name, ... }: {
            options = {
              enable = opt types.bool true;
              target = opt types.str name;
              text = opt (types.nullOr types.lines) null;
              source = mkOption { type = types.path; };
              mode = opt types.str "symlink";
              user = opt types.str "+0";
              group = opt types.str "+0";
            };
          }
        )
      )) { };
    };

    users = {
      users = opt (types.attrsOf (
        types.submodule (
          { name, ... }: {
            options = {
              name = opt types.str name;
              description = opt types.str "";
              isSystemUser = opt types.bool false;
              isNormalUser = opt types.bool false;
              uid = opt (types.nullOr types.int) null;
              group = opt types.str "";
              extraGroups = list types.str;
              home = opt types.path "/var/empty";
              createHome = opt types.bool false;
              shell = opt (types.nullOr (types.either types.package types.path)) null;
            };
          }
        )
      )) { };
      groups = opt (types.attrsOf (
        types.submodule {
          options = {
            gid = opt (types.nullOr types.int) null;
            members = list types.str;
          };
        }
      )) { };
    };

    security.polkit = {
      enable = opt types.bool false;
      extraConfig = lines;
    };

    sops = {
      secrets = opt (types.attrsOf (types.submodule secret)) { };
      defaultSopsFile = mkOption { type = types.path; };
      defaultSopsFormat = opt types.str "yaml";
      validateSopsFiles = opt types.bool true;
      useSystemdActivation = opt types.bool false;
      age = {
        keyFile = opt (types.nullOr types.str) null;
        generateKey = opt types.bool false;
        sshKeyPaths = list types.path;
      };
      gnupg = {
        home = opt (types.nullOr types.str) null;
        sshKeyPaths = list types.path;
      };
    };

    services.postgresql = {
      enable = mkEnableOption "PostgreSQL";
      package = opt types.package pkgs.postgresql;
      # Without a value where PostgreSQL is not enabled.
      dataDir = mkOption { type = types.path; };
      enableTCPIP = opt types.bool false;
      authentication = lines;
      ensureDatabases = list types.str;
      ensureUsers = list types.attrs;
      initialScript = opt (types.nullOr types.path) null;
      extensions = opt types.unspecified (_: [ ]);
      settings = mkOption {
        default = { };
        type = types.submodule {
          freeformType = types.attrsOf (
            types.oneOf [
              types.bool
              types.float
              types.int
              types.str
            ]
          );
          options = {
            port = opt types.port 5432;
            shared_preload_libraries = opt (types.nullOr (
              types.coercedTo (types.listOf types.str) (lib.concatStringsSep ",") types.commas
            )) null;
          };
        };
      };
    };
    services.redis = {
      package = opt types.package pkgs.redis;
      vmOverCommit = opt types.bool true;
      servers = opt (types.attrsOf (types.submodule redisServer)) { };
    };

    services.etcd = {
      enable = opt types.bool false;
      package = opt types.package pkgs.etcd;
      name = opt types.str config.networking.hostName;
      listenClientUrls = opt (types.listOf types.str) [ "http://127.0.0.1:2379" ];
      advertiseClientUrls = opt (types.listOf types.str) etcd.listenClientUrls;
      listenPeerUrls = opt (types.listOf types.str) [ "http://127.0.0.1:2380" ];
      initialAdvertisePeerUrls = opt (types.listOf types.str) etcd.listenPeerUrls;
      initialCluster = opt (types.listOf types.str) [ "${etcd.name}=http://127.0.0.1:2380" ];
      initialClusterState = opt (types.enum [
        "new"
        "existing"
      ]) "new";
      initialClusterToken = opt types.str "etcd-cluster";
      clientCertAuth = opt types.bool false;
      trustedCaFile = opt (types.nullOr types.path) null;
      certFile = opt (types.nullOr types.path) null;
      keyFile = opt (types.nullOr types.path) null;
      peerClientCertAuth = opt types.bool false;
      peerTrustedCaFile = opt (types.nullOr types.path) etcd.trustedCaFile;
      peerCertFile = opt (types.nullOr types.path) etcd.certFile;
      peerKeyFile = opt (types.nullOr types.path) etcd.keyFile;
      openFirewall = opt types.bool false;
      extraConf = opt (types.attrsOf types.str) { };
      dataDir = opt types.path "/var/lib/etcd";
    };

    # What a host has, besides.
    boot = {
      isContainer = opt types.bool false;
      kernel.sysctl = opt (types.attrsOf types.unspecified) { };
      loader = {
        grub.enable = opt types.bool (!config.boot.isContainer);
        grub.device = opt types.str "";
        systemd-boot.enable = opt types.bool false;
      };
    };
    fileSystems = opt (types.attrsOf (
      types.submodule {
        options = {
          device = opt (types.nullOr types.nonEmptyStr) null;
          fsType = opt types.nonEmptyStr "auto";
          options = list types.nonEmptyStr;
        };
      }
    )) { };
    services.openssh.enable = opt types.bool false;
    system = {
      activationScripts = opt (types.attrsOf (
        types.either types.str (
          types.submodule {
            options = {
              deps = list types.str;
              text = lines;
              supportsDryActivation = opt types.bool false;
            };
          }
        )
      )) { };
      stateVersion = opt types.str "26.05";
      build = opt (types.attrsOf types.unspecified) { };
    };
    nixpkgs = {
      overlays = list types.unspecified;
      hostPlatform = mkOption { type = types.str; };
    };
  };

  config = mkMerge [
    { _module.args = { inherit utils; }; }
    (mkIf config.services.postgresql.enable {
      # In NixOS the last part is the package's psqlSchema.
      services.postgresql.dataDir = lib.mkDefault "/var/lib/postgresql/17";
      systemd.targets.postgresql = {
        description = "PostgreSQL";
        wantedBy = [ "multi-user.target" ];
        requires = [
          "postgresql.service"
          "postgresql-setup.service"
        ];
      };
      systemd.services.postgresql = {
        description = "PostgreSQL Server";
        after = [ "network.target" ];
        wants = [ "postgresql.target" ];
        partOf = [ "postgresql.target" ];
        serviceConfig = {
          Type = "notify";
          User = "postgres";
          StateDirectory = mkIf (
            config.services.postgresql.dataDir == "/var/lib/postgresql/17"
          ) "postgresql postgresql/17";
          StateDirectoryMode = "0750";
          Restart = "always";
          ExecStart = "${config.services.postgresql.package}/bin/postgres";
          TimeoutSec = 120;
        };
      };
      systemd.services.postgresql-setup = {
        description = "PostgreSQL Setup Scripts";
        requires = [ "postgresql.service" ];
        after = [ "postgresql.service" ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          User = "postgres";
        };
        script = "true";
      };
      users.users.postgres = {
        isSystemUser = true;
        group = "postgres";
      };
      users.groups.postgres = { };
    })
    (mkIf (redisServers != { }) {
      systemd.services = lib.mapAttrs' (
        n: s:
        lib.nameValuePair (redisName n) {
          description = "Redis Server - ${redisName n}";
          wantedBy = [ "multi-user.target" ];
          after = [ "network.target" ];
          serviceConfig = {
            Type = "notify";
            User = s.user;
            Group = s.group;
            StateDirectory = redisName n;
            StateDirectoryMode = "0700";
            ExecStart = "${config.services.redis.package}/bin/redis-server /var/lib/${redisName n}/redis.conf";
          };
        }
      ) redisServers;
      networking.firewall.allowedTCPPorts = lib.concatMap (s: lib.optional s.openFirewall s.port) (
        lib.attrValues redisServers
      );
      users.users = lib.mapAttrs' (
        _: s:
        lib.nameValuePair s.user {
          isSystemUser = true;
          inherit (s) group;
        }
      ) redisServers;
      users.groups = lib.mapAttrs' (_: s: lib.nameValuePair s.group { }) redisServers;
    })
    (mkIf etcd.enable {
      systemd.services.etcd = {
        description = "etcd key-value store";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        # In NixOS "" where a flag is not set, too; and tmpfiles.settings makes the folder.
        environment =
          lib.filterAttrs (_: v: v != null) {
            ETCD_NAME = etcd.name;
            ETCD_DATA_DIR = etcd.dataDir;
            ETCD_LISTEN_CLIENT_URLS = lib.concatStringsSep "," etcd.listenClientUrls;
            ETCD_ADVERTISE_CLIENT_URLS = lib.concatStringsSep "," etcd.advertiseClientUrls;
            ETCD_LISTEN_PEER_URLS = lib.concatStringsSep "," etcd.listenPeerUrls;
            ETCD_INITIAL_ADVERTISE_PEER_URLS = lib.concatStringsSep "," etcd.initialAdvertisePeerUrls;
            ETCD_INITIAL_CLUSTER = lib.concatStringsSep "," etcd.initialCluster;
            ETCD_INITIAL_CLUSTER_STATE = etcd.initialClusterState;
            ETCD_INITIAL_CLUSTER_TOKEN = etcd.initialClusterToken;
            ETCD_CLIENT_CERT_AUTH = toString etcd.clientCertAuth;
            ETCD_TRUSTED_CA_FILE = etcd.trustedCaFile;
            ETCD_CERT_FILE = etcd.certFile;
            ETCD_KEY_FILE = etcd.keyFile;
            ETCD_PEER_CLIENT_CERT_AUTH = toString etcd.peerClientCertAuth;
            ETCD_PEER_TRUSTED_CA_FILE = etcd.peerTrustedCaFile;
            ETCD_PEER_CERT_FILE = etcd.peerCertFile;
            ETCD_PEER_KEY_FILE = etcd.peerKeyFile;
          }
          // lib.mapAttrs' (n: v: lib.nameValuePair "ETCD_${n}" v) etcd.extraConf;
        serviceConfig = {
          Type = "notify";
          User = "etcd";
          Restart = "always";
          RestartSec = "30s";
          ExecStart = "${etcd.package}/bin/etcd";
          LimitNOFILE = 40000;
        };
      };
      networking.firewall.allowedTCPPorts = lib.optionals etcd.openFirewall [
        2379
        2380
      ];
      environment.systemPackages = [ etcd.package ];
      users.users.etcd = {
        isSystemUser = true;
        group = "etcd";
        home = etcd.dataDir;
      };
      users.groups.etcd = { };
    })
    {
      systemd.timers = lib.mapAttrs (_: s: {
        wantedBy = [ "timers.target" ];
        timerConfig.OnCalendar = s.startAt;
      }) (lib.filterAttrs (_: s: s.enable && s.startAt != [ ]) config.systemd.services);

      assertions = [
        {
          assertion =
            config.networking.firewall.backend != "nftables" || config.networking.firewall.extraCommands == "";
          message = "extraCommands is incompatible with the nftables based firewall: ${config.networking.firewall.extraCommands}";
        }
        {
          assertion =
            config.networking.firewall.extraInputRules == ""
            || config.networking.firewall.backend == "nftables";
          message = "(stand-in) extraInputRules only works with the nftables based firewall";
        }
        {
          assertion =
            config.sops.secrets == { }
            || config.sops.age.keyFile != null
            || config.sops.age.sshKeyPaths != [ ]
            || config.sops.gnupg.home != null
            || config.sops.gnupg.sshKeyPaths != [ ];
          message = "No key source configured for sops. Either set services.openssh.enable or set sops.age.keyFile or sops.gnupg.home";
        }
      ]
      ++ lib.mapAttrsToList (n: s: {
        assertion = s.owner == null || config.users.users ? ${s.owner};
        message = "(stand-in) sops.secrets.\"${n}\".owner names the user ${toString s.owner}, which is not declared";
      }) config.sops.secrets;
    }
  ];
}
