# The fence: what is watched, who may do what, and what is refused.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; })
    host
    fleet
    sleep
    databases
    examples
    ;
  file = config: config.server.database.fence.settings;
  mysql = {
    path = "/srv/mysql/io-fence";
    owner = "mysql";
    through = [ "/srv/mysql" ];
    ports = [ 3306 ];
  };
  alone =
    settings:
    host "db" {
      server.database.fence = {
        enable = true;
      }
      // settings;
    };
  refused = settings: assertions: {
    modules = alone settings;
    expect = { inherit assertions; };
  };
  onError = {
    eio = "fence";
    enospc = "warn";
    erofs = "fence";
    vanished = "fence";
    other = "fence";
  };
in
{
  "nixio: PostgreSQL and Redis are watched, and a fence drains" = {
    modules = examples.nixio;
    expect = {
      units."io-fence.service" = {
        has = [
          "Type=notify"
          "User=io-fence"
          "AmbientCapabilities=CAP_NET_ADMIN"
          "CapabilityBoundingSet=CAP_NET_ADMIN"
          "LimitMEMLOCK=infinity"
          "NoNewPrivileges=true"
          "Restart=always"
          "RestartPreventExitStatus=64 78"
          "WatchdogSec=5s"
          "WatchdogSignal=SIGKILL"
          "RuntimeDirectory=io-fence"
          "RuntimeDirectoryPreserve=true"
          "TimeoutStopSec=500ms"
          "Before=network-pre.target shutdown.target postgresql.service redis.service"
          "After=local-fs.target systemd-sysusers.service systemd-tmpfiles-setup.service"
          "DefaultDependencies=false"
          "X-StopIfChanged=false"
          # No port without figures.
          "RestrictAddressFamilies=AF_UNIX"
          "RestrictAddressFamilies=AF_NETLINK"
          # A start writes to no disk, and mounts none.
          "ProtectSystem=full"
          "PrivateTmp=false"
        ];
        lacks = [
          "StateDirectory="
          "ReadWritePaths="
          "BindPaths="
          "SupplementaryGroups="
          "RestrictAddressFamilies=AF_INET"
          "PrivateDevices=true"
        ];
      };
      units."io-fence-drain.service" = {
        has = [
          "Type=oneshot"
          "User=io-coordinator"
          "Conflicts=io-fence-undrain.service"
          "KillMode=process"
          "SupplementaryGroups=io-guardian-psk"
        ];
        lacks = [
          "StateDirectory="
          "ExecStartPre="
          "WantedBy="
        ];
      };
      units."io-fence-undrain.service".has = [
        "ExecCondition=/usr/bin/sh -c 'case \"$$(/usr/bin/systemctl show -P ActiveState io-database-coordinator.service)\" in active|activating|reloading) ;; *) exit 1 ;; esac'"
        "After=network-online.target nss-lookup.target io-fence-drain.service"
        "Conflicts=io-fence-drain.service"
        "LoadCredential=redis:/run/secrets/REDIS/PASSWORD"
      ];
      units."redis.service".has = [ "StateDirectoryMode=0710" ];
      links = [ "multi-user.target.wants/io-fence.service" ];
      values."server.database.fence.settings" = {
        heartbeat = "5s";
        unfence-after = "5s";
        cut = [
          "new"
          "established"
        ];
        allow = [ ];
        reporter-users = [ ];
        on-fence-unit = "io-fence-drain.service";
        on-unfence-unit = "io-fence-undrain.service";
        folder = [
          {
            path = "/var/lib/postgresql/io-fence";
            ports = [ 5432 ];
            udp-ports = [ ];
            warn-latency = "500ms";
            on-error = onError;
          }
          {
            path = "/var/lib/redis/io-fence";
            ports = [ 6379 ];
            udp-ports = [ ];
            warn-latency = "500ms";
            on-error = onError;
          }
        ];
      };
      # What they drain with is what the coordinator drains with.
      config = config: [
        {
          name = "the same drain, the same undrain";
          ok =
            let
              inherit (config.systemd) services;
              coordinator = services.io-database-coordinator.serviceConfig;
            in
            services.io-fence-drain.serviceConfig.ExecStart == coordinator.ExecStopPost
            && lib.hasPrefix services.io-fence-undrain.serviceConfig.ExecStart coordinator.ExecStart
            && services.io-fence-undrain.serviceConfig.ExecStartPre == coordinator.ExecStartPre;
        }
        {
          name = "it may start two units, and nothing else";
          ok =
            lib.hasInfix ''subject.user == "io-fence"'' config.security.polkit.extraConfig
            && lib.hasInfix ''["io-fence-drain.service", "io-fence-undrain.service"].indexOf(action.lookup("unit")) >= 0'' config.security.polkit.extraConfig
            && lib.hasInfix ''action.lookup("verb") == "start"'' config.security.polkit.extraConfig;
          seen = config.security.polkit.extraConfig;
        }
        {
          name = "its folders are made, and the databases' own opened no further than that";
          ok =
            lib.sort lib.lessThan config.systemd.tmpfiles.rules == lib.sort lib.lessThan [
              "d /var/lib/postgresql :0750 postgres postgres -"
              "a+ /var/lib/postgresql - - - - u:io-fence:--x"
              "d /var/lib/postgresql/io-fence 0770 postgres io-fence -"
              "d /var/lib/redis :0710 redis redis -"
              "a+ /var/lib/redis - - - - u:io-fence:--x"
              "d /var/lib/redis/io-fence 0770 redis io-fence -"
            ];
          seen = config.systemd.tmpfiles.rules;
        }
      ];
    };
  };

  "without a wish nothing is watched" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect = {
      units."io-fence.service" = null;
      units."io-fence-drain.service" = null;
      units."redis.service".has = [ "StateDirectoryMode=0700" ];
      values."systemd.tmpfiles.rules" = [ ];
      values."security.polkit.extraConfig" = "";
    };
  };

  "ports and folders are those of the databases" = {
    modules = host "db" {
      services.postgresql = {
        enable = true;
        settings.port = 5433;
        dataDir = "/data/pg/17";
      };
      services.redis.servers = {
        queue = {
          enable = true;
          port = 6380;
        };
        # A socket only: nothing to close.
        local.enable = true;
      };
      server.database.fence = {
        enable = true;
        heartbeat = "2s";
        busyLimit = "10s";
        allow = [ "10.0.0.9/32" ];
        folders.redis-queue = {
          heartbeat = "10s";
          busyLimit = "20s";
          sleep = "2s";
        };
      };
    };
    expect = {
      units."io-fence-drain.service" = null;
      values."security.polkit.extraConfig" = "";
      config = config: [
        {
          name = "one folder for each server with a port";
          ok =
            (file config).folder == [
              {
                path = "/data/pg/io-fence";
                ports = [ 5433 ];
                udp-ports = [ ];
                warn-latency = "500ms";
                on-error = onError;
              }
              {
                path = "/var/lib/redis-queue/io-fence";
                ports = [ 6380 ];
                udp-ports = [ ];
                warn-latency = "500ms";
                on-error = onError;
                heartbeat = "10s";
                busy-limit = "20s";
                sleep = "2s";
              }
            ];
          seen = (file config).folder;
        }
        {
          name = "nobody's folders are touched where NixOS does not make them";
          ok =
            !lib.any (lib.hasInfix " /data/pg ") config.systemd.tmpfiles.rules
            && lib.elem "d /data/pg/io-fence 0770 root io-fence -" config.systemd.tmpfiles.rules;
          seen = config.systemd.tmpfiles.rules;
        }
        {
          name = "who is allowed, and how long";
          ok =
            (file config).allow == [ "10.0.0.9/32" ]
            && (file config).heartbeat == "2s"
            && (file config).busy-limit == "10s"
            && !(file config ? on-fence-unit);
        }
      ];
    };
  };

  "another database, and one that is left out" = {
    modules = host "db" {
      services.redis.servers."".enable = true;
      server.database.fence = {
        enable = true;
        folders = {
          inherit mysql;
          redis.enable = false;
        };
        metrics = {
          enable = true;
          address = "::";
          openFirewall = true;
        };
      };
    };
    expect = {
      units."io-fence.service".has = [
        "RestrictAddressFamilies=AF_INET"
        "RestrictAddressFamilies=AF_INET6"
      ];
      units."redis.service".has = [ "StateDirectoryMode=0700" ];
      firewall.extraCommands = "iptables -A nixos-fw -p tcp -s 192.168.1.0/24 --dport 9879 -j nixos-fw-accept\n";
      values."systemd.tmpfiles.rules" = [
        "a+ /srv/mysql - - - - u:io-fence:--x"
        "d /srv/mysql/io-fence 0770 mysql io-fence -"
      ];
      config = config: [
        {
          name = "the other one alone, with figures";
          ok =
            map (f: f.path) (file config).folder == [ "/srv/mysql/io-fence" ]
            && (file config).metrics == "[::]:9879";
          seen = file config;
        }
      ];
    };
  };

  "nothing to watch" = refused { } [
    "io-fence on db has nothing to watch: enable services.postgresql or services.redis.servers, or name a folder and its ports with server.database.fence.folders.<name>."
  ];
  "nobody to drain" =
    refused
      {
        folders = { inherit mysql; };
        onFence = "drain";
      }
      [
        "server.database.fence.onFence is \"drain\" on db, which has no coordinator that could drain anybody: set it to \"nothing\", or see why server.database.coordinator.enable is false."
      ];
  "a fence that ends nothing" =
    refused
      {
        folders = { inherit mysql; };
        cut = [ ];
      }
      [
        "server.database.fence.cut is empty on db: a fence that ends neither new connections nor established ones is none. Set it to [ \"new\" \"established\" ]."
      ];
  "a folder that closes nothing" =
    refused
      {
        folders.mysql = mysql // {
          ports = [ ];
        };
      }
      [
        "server.database.fence.folders.mysql closes nothing: name the ports that hang on /srv/mysql/io-fence with its ports or udpPorts, or set its enable to false."
      ];
  "a sleep as long as half a heartbeat" =
    refused
      {
        folders.mysql = mysql // {
          heartbeat = "2s";
          sleep = "1s";
        };
      }
      [
        "io-fence must look at a disk more than twice before it gives it up: server.database.fence.folders.mysql.sleep (1s) must be shorter than half of its heartbeat (2s)."
      ];
  "a busy disk that is given less time than one that hangs" =
    refused
      {
        busyLimit = "4s";
        folders.mysql = mysql // {
          heartbeat = "6s";
        };
      }
      [
        "A disk that is busy is given no less time than one that hangs: server.database.fence.folders.mysql.busyLimit (4s) must not be shorter than its heartbeat (6s). Make it as long, and busy disks are not told from others."
      ];
  "a warning that comes after the outage" = {
    modules = alone {
      folders.mysql = mysql // {
        heartbeat = "500ms";
      };
    };
    expect.warnings = [
      "server.database.fence.folders.mysql.warnLatency (500ms) has no effect: after 500ms its ports are closed already. Make it shorter."
    ];
  };
  "a folder that is a database's own" = {
    modules = host "db" {
      services.postgresql.enable = true;
      server.database.fence = {
        enable = true;
        folders.postgresql.path = "/var/lib/postgresql/17";
      };
    };
    expect.assertions = [
      "server.database.fence.folders.postgresql.path is /var/lib/postgresql/17, which is not io-fence's own: it would be closed to all others. Name a folder within it: /var/lib/postgresql/17/io-fence."
    ];
  };
  "a disk that is the data folder itself" = {
    modules = host "db" {
      services.postgresql.enable = true;
      fileSystems."/var/lib/postgresql/17" = {
        device = "/dev/vdb";
        fsType = "xfs";
      };
      server.database.fence.enable = true;
    };
    expect.assertions = [
      "PostgreSQL's data folder on db, /var/lib/postgresql/17, is a disk of its own, and /var/lib/postgresql/io-fence is not on it: mount the disk at /var/lib/postgresql, so that a folder of io-fence's is beside the data, or set server.database.fence.folders.postgresql.path to a folder on that disk."
    ];
  };
  "a path that is none" = {
    modules = alone {
      folders.mysql = mysql // {
        path = "srv/mysql";
      };
    };
    expect.error = "server.database.fence.folders.mysql.path";
  };
}
