# Addresses: what a host with a pool renders to, who is let in to its etcd, where secrets go, and what is refused.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; }) host examples;
  members = {
    a = "192.168.1.21";
    b = "192.168.1.22";
    c = "192.168.1.23";
  };
  given = {
    enable = true;
    interface = "eth0";
    store.endpoints = lib.mkDefault [
      "http://192.168.1.21:2379"
      "http://192.168.1.22:2379"
      "http://192.168.1.23:2379"
    ];
    settings.checker-type = lib.mkDefault "none";
  };
  node =
    settings:
    host "a" {
      imports = [ { server.vip = given; } ];
      server.vip = settings;
    };
  # One that keeps the pool, too.
  member =
    etcd:
    host "a" {
      imports = [ { server.vip = removeAttrs given [ "store" ]; } ];
      server.vip.etcd = {
        enable = true;
        members = lib.mkDefault members;
      }
      // etcd;
    };
  refused = settings: assertions: {
    modules = node settings;
    expect = { inherit assertions; };
  };
  wrong = settings: error: {
    modules = node settings;
    expect = { inherit error; };
  };
  warns = modules: warnings: {
    inherit modules;
    expect = { inherit warnings; };
  };
  sealed = {
    endpoints = [ "https://192.168.1.21:2379" ];
    caFile = "/etc/etcd/ca.pem";
  };
in
{
  "edge1: it holds addresses, and keeps the pool with the others" = {
    modules = examples.edge1;
    expect = {
      units."io-vip.service" = {
        has = [
          "Type=notify"
          "User=io-vip"
          "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
          "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW"
          "NoNewPrivileges=true"
          "After=network-online.target nss-lookup.target etcd.service"
          "ExecStart=\"/usr/bin/io-vip\" \"run\" \"--config\" \"/run/built/io-vip-checked.toml\""
          "KillMode=mixed"
          # The ttl and 2 s.
          "TimeoutStopSec=12s"
          "WatchdogSec=3333ms"
          "WatchdogSignal=SIGKILL"
          "Restart=always"
          "RestartPreventExitStatus=64 78"
          "RuntimeDirectory=io-vip"
          "RuntimeDirectoryPreserve=true"
          "RestrictAddressFamilies=AF_NETLINK"
          "RestrictAddressFamilies=AF_PACKET"
          "RestrictAddressFamilies=AF_INET"
          "RestrictAddressFamilies=AF_INET6"
          "ProcSubset=all"
          "X-StopIfChanged=false"
        ];
        lacks = [
          "LoadCredential="
          "StateDirectory="
          "SupplementaryGroups="
          # A member that is restarted takes no address along.
          "Requires="
          "BindsTo="
        ];
      };
      units."etcd.service".has = [
        "Environment=\"ETCD_NAME=edge1\""
        "Environment=\"ETCD_INITIAL_CLUSTER=edge1=http://192.168.1.21:2380,edge2=http://192.168.1.22:2380,edge3=http://192.168.1.23:2380\""
        "Environment=\"ETCD_LISTEN_CLIENT_URLS=http://127.0.0.1:2379,http://192.168.1.21:2379\""
        "Environment=\"ETCD_ADVERTISE_CLIENT_URLS=http://192.168.1.21:2379\""
        "Environment=\"ETCD_LISTEN_PEER_URLS=http://192.168.1.21:2380\""
        "Environment=\"ETCD_INITIAL_ADVERTISE_PEER_URLS=http://192.168.1.21:2380\""
        "Environment=\"ETCD_AUTO_COMPACTION_MODE=periodic\""
        "Environment=\"ETCD_AUTO_COMPACTION_RETENTION=1h\""
        "RestartSec=3s"
      ];
      units."io-guardian.service" = null;
      links = [ "multi-user.target.wants/io-vip.service" ];
      # The others to etcd, one who puts addresses there; Prometheus to the figures.
      firewall.extraCommands = ''
        iptables -A nixos-fw -p tcp -s 192.168.1.0/24 --dport 9880 -j nixos-fw-accept
        ip6tables -A nixos-fw -p tcp -s fd00::/8 --dport 9880 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.22 --dport 2379 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.22 --dport 2380 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.23 --dport 2379 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.23 --dport 2380 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.10 --dport 2379 -j nixos-fw-accept
      '';
      firewall.allowedTCPPorts = [ 8080 ];
      values."environment.sessionVariables.YAIM_CONFIG" = "/etc/io-vip.toml";
      config = config: [
        {
          name = "its configuration says all that it goes by";
          ok =
            lib.filterAttrs (_: value: value != null) config.server.vip.settings == {
              checker-type = "http";
              http-url = "http://127.0.0.1:8080/";
              dcs-clustername = "edge";
              dcs-endpoints = [
                "http://192.168.1.21:2379"
                "http://192.168.1.22:2379"
                "http://192.168.1.23:2379"
              ];
              interface = "eth0";
              interval = "1s";
              label = "vip";
              margin = "1s";
              metrics = "0.0.0.0:9880";
              neighbours = "ask";
              nodename = "edge1";
              on-stop = "release";
              ttl = "10s";
            };
          seen = config.server.vip.settings;
        }
      ];
    };
  };

  "nothing of it without a wish" = {
    modules = host "a" { server.vip.etcd.members = members; };
    expect = {
      units."io-vip.service" = null;
      units."etcd.service" = null;
      firewall.extraCommands = "";
    };
  };

  "a host that has no primary, and no etcd of its own" = {
    modules = host "a" {
      server.ioPrimaryHost = null;
      server.vip = given;
    };
    expect = {
      units."io-vip.service".has = [ "After=network-online.target nss-lookup.target" ];
      units."etcd.service" = null;
      units."io-guardian.service" = null;
      firewall.extraCommands = "";
    };
  };

  "what follows from the ttl" = {
    modules = node {
      settings.ttl = "2s";
      settings.on-stop = "keep";
    };
    expect = {
      values = {
        "server.vip.settings.margin" = "200ms";
        "server.vip.settings.interval" = "600ms";
      };
      units."io-vip.service".has = [
        "TimeoutStopSec=4s"
        "WatchdogSec=2s"
      ];
    };
  };
  "a ttl that no whole number is a tenth of" = {
    modules = node { settings.ttl = "3s 333ms"; };
    expect.values = {
      # Up and down: io-vip counts more exactly.
      "server.vip.settings.margin" = "334ms";
      "server.vip.settings.interval" = "999ms";
    };
  };
  "a long ttl" = {
    modules = node { settings.ttl = "1m"; };
    expect = {
      values."server.vip.settings.margin" = "6s";
      values."server.vip.settings.interval" = "1s";
      units."io-vip.service".has = [
        "TimeoutStopSec=62s"
        "WatchdogSec=5s"
      ];
    };
  };

  "secrets are credentials of the unit, and paths in the file" = {
    modules = node {
      store = sealed // {
        user = "vip";
        passwordFile = "/run/secrets/etcd-password";
        certFile = "/etc/etcd/cert.pem";
        keyFile = "/run/secrets/etcd-key";
      };
      settings = {
        checker-type = "postgres";
        postgres-conn-url = "postgres://monitor@127.0.0.1:5432/postgres";
        postgres-password-file = "/run/secrets/monitor";
      };
    };
    expect = {
      units."io-vip.service".has = [
        "ExecStart=\"/usr/bin/io-vip\" \"run\" \"--config\" \"/run/built/io-vip-checked.toml\" --etcd-ca-file %d/etcd-ca-file --etcd-cert-file %d/etcd-cert-file --etcd-key-file %d/etcd-key-file --etcd-password-file %d/etcd-password-file --postgres-password-file %d/postgres-password-file"
        "LoadCredential=etcd-ca-file:/etc/etcd/ca.pem"
        "LoadCredential=etcd-cert-file:/etc/etcd/cert.pem"
        "LoadCredential=etcd-key-file:/run/secrets/etcd-key"
        "LoadCredential=etcd-password-file:/run/secrets/etcd-password"
        "LoadCredential=postgres-password-file:/run/secrets/monitor"
      ];
      values = {
        "server.vip.settings.etcd-user" = "vip";
        "server.vip.settings.etcd-password-file" = "/run/secrets/etcd-password";
      };
    };
  };

  "an etcd with certificates lets nobody in without one" = {
    modules = member {
      caFile = "/etc/etcd/ca.pem";
      certFile = "/etc/etcd/cert.pem";
      keyFile = "/run/secrets/etcd-key";
    };
    expect = {
      units."etcd.service".has = [
        "Environment=\"ETCD_INITIAL_CLUSTER=a=https://192.168.1.21:2380,b=https://192.168.1.22:2380,c=https://192.168.1.23:2380\""
        "Environment=\"ETCD_LISTEN_CLIENT_URLS=https://127.0.0.1:2379,https://192.168.1.21:2379\""
        "Environment=\"ETCD_CLIENT_CERT_AUTH=1\""
        "Environment=\"ETCD_PEER_CLIENT_CERT_AUTH=1\""
        "Environment=\"ETCD_TRUSTED_CA_FILE=/etc/etcd/ca.pem\""
        "Environment=\"ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/ca.pem\""
        "Environment=\"ETCD_PEER_KEY_FILE=/run/secrets/etcd-key\""
      ];
      units."io-vip.service".has = [
        "LoadCredential=etcd-ca-file:/etc/etcd/ca.pem"
        "LoadCredential=etcd-cert-file:/etc/etcd/cert.pem"
        "LoadCredential=etcd-key-file:/run/secrets/etcd-key"
      ];
      values."server.vip.store.endpoints" = [
        "https://192.168.1.21:2379"
        "https://192.168.1.22:2379"
        "https://192.168.1.23:2379"
      ];
    };
  };

  "IPv6, nftables, and a member that joins later" = {
    modules = host "b" {
      networking.nftables.enable = true;
      services.etcd.initialClusterState = "existing";
      server.vip = removeAttrs given [ "store" ] // {
        etcd = {
          enable = true;
          members = {
            a = "fd00::21";
            b = "fd00::22";
            c = "192.168.1.23";
          };
          clients = [
            "fd00::/64"
            "fd00::21"
          ];
        };
      };
    };
    expect = {
      firewall.extraCommands = "";
      firewall.extraInputRules = ''
        ip saddr { 192.168.1.23 } tcp dport { 2379, 2380 } accept
        ip6 saddr { fd00::21 } tcp dport { 2379, 2380 } accept
        ip6 saddr { fd00::/64 } tcp dport { 2379 } accept
      '';
      units."etcd.service".has = [
        "Environment=\"ETCD_LISTEN_PEER_URLS=http://[fd00::22]:2380\""
        "Environment=\"ETCD_INITIAL_CLUSTER_STATE=existing\""
      ];
    };
  };
  "the firewall can be left alone" = {
    modules = member { openFirewall = false; };
    expect.firewall.extraCommands = "";
  };
  "a firewall that we have no rules for is said" = {
    modules = host "a" {
      imports = [ { server.vip = removeAttrs given [ "store" ]; } ];
      networking.firewall.backend = "firewalld";
      server.vip.etcd = {
        enable = true;
        inherit members;
      };
    };
    expect.warnings = [
      "networking.firewall.backend of a is firewalld, for which we have no rules: let 192.168.1.22, 192.168.1.23 in on TCP port 2379, 2380 yourself, and set server.vip.etcd.openFirewall = false;"
    ];
  };

  # Mistakes.
  "no interface" = refused { interface = lib.mkForce null; } [
    "server.vip.interface is not set on a: name the interface that the addresses are put on, for example server.vip.interface = \"eth0\";"
  ];
  "an interface that is none" = wrong {
    interface = lib.mkForce "eth0:vip";
  } "server.vip.interface";
  "a label that the kernel does not take" =
    refused
      {
        interface = lib.mkForce "enp0s31f6";
        settings.label = "address";
      }
      [
        "The label enp0s31f6:address on a has 17 characters, and the kernel takes 15: shorten server.vip.settings.label (address)."
      ];
  "a ttl that no lease has" = refused { settings.ttl = "1s"; } [
    "server.vip.settings.ttl (1s) on a must be from 2s to 10m: etcd has no shorter leases, and longer ones make nobody safer."
  ];
  "a ttl that is a day" = refused { settings.ttl = "24h"; } [
    "server.vip.settings.ttl (24h) on a must be from 2s to 10m: etcd has no shorter leases, and longer ones make nobody safer."
  ];
  "a time without a unit" = wrong {
    settings.ttl = "10";
  } "duration with a unit, like `5s`, `2m` or `1m 30s`";
  "a margin that clocks eat up" = refused { settings.margin = "500ms"; } [
    "A node must give up its addresses before others take them, however their clocks run: server.vip.settings.margin (500ms) on a must be a tenth of ttl (10s) and 150ms at least. Raise it to 1s, or leave it out."
  ];
  "signs of life that are too rare" =
    refused
      {
        settings.ttl = "5s";
        settings.interval = "2s";
      }
      [
        "A sign of life may be lost, and the next one must be in time: three times server.vip.settings.interval (2s) and margin (500ms) on a must fit into ttl (5s). Lower interval to 1500ms, or raise ttl to 6500ms on all nodes."
      ];
  "signs of life that are too many" = refused { settings.interval = "10ms"; } [
    "server.vip.settings.interval (10ms) on a must be 50ms at least: each is a write to etcd's disks."
  ];
  "nobody says what healthy is" = refused { settings.checker-type = null; } [
    "Nothing says on a when it is healthy: set server.vip.settings.checker-type to \"http\", \"postgres\", \"redis\", \"tcp\" or \"command\"; or to \"none\", which takes a host that runs for healthy."
  ];
  "a check that does not exist" = wrong {
    settings.checker-type = "shell";
  } "server.vip.settings.checker-type";
  "nothing keeps the pool" = refused { store.endpoints = [ ]; } [
    "Nothing keeps the pool for a: name etcd's members with server.vip.store.endpoints, or set server.vip.etcd.enable = true; and server.vip.etcd.members."
  ];
  "half of the store in clear" =
    refused
      {
        store = sealed // {
          endpoints = [
            "http://192.168.1.21:2379"
            "https://192.168.1.22:2379"
          ];
          caFile = null;
        };
      }
      [
        "server.vip.store.endpoints on a mixes http:// (http://192.168.1.21:2379) and https:// (https://192.168.1.22:2379): write all of them with the same."
        "server.vip.store.endpoints on a says https://192.168.1.22:2379, and nothing says who vouches for it: set server.vip.store.caFile."
      ];
  "certificates for a store in clear" = refused { store.caFile = "/etc/etcd/ca.pem"; } [
    "server.vip.store.endpoints on a says http://192.168.1.21:2379, and server.vip.store has caFile for TLS: write https://, or take it out."
  ];
  "a certificate without its key" =
    refused
      {
        store = sealed // {
          certFile = "/etc/etcd/cert.pem";
        };
      }
      [
        "server.vip.store on a has certFile without keyFile: set both, or neither."
      ];
  "a password without a user" = refused { store.passwordFile = "/run/secrets/etcd"; } [
    "server.vip.store on a has passwordFile without user: set both, or neither."
  ];
  "a member that is not one" = {
    modules = member {
      members = {
        inherit (members) b c;
        d = "192.168.1.24";
      };
    };
    expect.assertions = [
      "server.vip.etcd.enable is set on a, and a is not one of server.vip.etcd.members (b, c, d): add it with its address, or set server.vip.etcd.name."
    ];
  };
  "a member that has a name instead of an address" = {
    modules = member {
      members = members // {
        a = "a.example.net";
      };
    };
    expect.error = "IPv4 or IPv6 address, like `192.168.1.10` or `fd00::10`";
  };
  "an etcd with half of what TLS needs" = {
    modules = member { caFile = "/etc/etcd/ca.pem"; };
    expect.assertions = [
      "server.vip.store.endpoints on a says http://192.168.1.21:2379, and server.vip.store has caFile for TLS: write https://, or take it out."
      "server.vip.etcd on a has caFile alone: set caFile, certFile and keyFile, or none of them."
    ];
  };
  "an election that etcd refuses" = {
    modules = member { heartbeatInterval = "300ms"; };
    expect.assertions = [
      "etcd does not start with less than five heartbeats in an election timeout: server.vip.etcd.electionTimeout (1s) on a must be at least five times heartbeatInterval (300ms). Leave heartbeatInterval out."
    ];
  };
  "a key in the store" = wrong {
    store.keyFile = ../../../hosts/server/test-age-key.txt;
  } "absolute path, as text, outside of the Nix store (which everyone can read)";
  "a password's file in the store" = wrong {
    settings.http-password-file = "${builtins.storeDir}/00000000000000000000000000000000-password";
  } "absolute path, as text, outside of the Nix store (which everyone can read)";
  "passwords that everybody could read" =
    refused
      {
        settings = {
          checker-type = "postgres";
          postgres-conn-url = "postgres://monitor:secret@127.0.0.1:5432/postgres";
          etcd-password = "secret";
          http-password = "secret";
        };
      }
      [
        "server.vip.settings.etcd-password on a would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.store.passwordFile."
        "server.vip.settings.http-password on a would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.settings.http-password-file."
        "server.vip.settings.postgres-conn-url on a has a password in it, and would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.settings.postgres-password-file."
      ];

  "a password in the words of libpq" =
    refused { settings.postgres-conn-url = "host=/run/postgresql user=monitor password=secret"; }
      [
        "server.vip.settings.postgres-conn-url on a has a password in it, and would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.settings.postgres-password-file."
      ];
  "a password in the options of a URL" =
    refused
      { settings.postgres-conn-url = "postgres://monitor@127.0.0.1/x?sslmode=require&password=secret"; }
      [
        "server.vip.settings.postgres-conn-url on a has a password in it, and would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.settings.postgres-password-file."
      ];
  "files that the unit may not write" =
    refused
      {
        settings.socket = "/run/io-vip/vip.sock";
        settings.state = "/var/lib/io-vip.json";
      }
      [
        "server.vip.settings.state (/var/lib/io-vip.json) on a is not in /run/io-vip, and that is all that the unit may write to: leave it out, or put it there."
      ];
  "an election that etcd does not start with" = {
    modules = host "a" {
      server.vip.etcd = {
        enable = true;
        electionTimeout = "1m";
        inherit members;
      };
    };
    expect.assertions = [
      "server.vip.etcd.electionTimeout (1m) on a must be from 10ms to 50s: etcd does not start with another one."
    ];
  };
  "a member with no addresses is a member, and is let in to" = {
    modules = host "c" {
      server.vip.etcd = {
        enable = true;
        inherit members;
      };
    };
    expect = {
      units."io-vip.service" = null;
      values."services.etcd.name" = "c";
      firewall.extraCommands = ''
        iptables -A nixos-fw -p tcp -s 192.168.1.21 --dport 2379 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.21 --dport 2380 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.22 --dport 2379 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.22 --dport 2380 -j nixos-fw-accept
      '';
    };
  };
  "a member with no addresses that is not one" = {
    modules = host "d" {
      server.vip.etcd = {
        enable = true;
        inherit members;
      };
    };
    expect.assertions = [
      "server.vip.etcd.enable is set on d, and d is not one of server.vip.etcd.members (a, b, c): add it with its address, or set server.vip.etcd.name."
    ];
  };

  # What works badly.
  "a ttl that no election fits into" =
    warns
      (host "a" {
        imports = [ { server.vip = removeAttrs given [ "store" ]; } ];
        server.vip.settings.ttl = "2s";
        server.vip.etcd = {
          enable = true;
          inherit members;
        };
      })
      [
        "When etcd's leader goes, no sign of life of a gets through for up to 3200ms (twice server.vip.etcd.electionTimeout, 1s, and two of server.vip.settings.interval, 600ms), and what it holds lasts for 1800ms (ttl less margin): all nodes may drop all addresses each time. Raise server.vip.settings.ttl on all nodes, or lower electionTimeout to 300ms on all members."
      ];
  "the same with an election that fits" = {
    modules = host "a" {
      imports = [ { server.vip = removeAttrs given [ "store" ]; } ];
      server.vip.settings.ttl = "2s";
      server.vip.etcd = {
        enable = true;
        inherit members;
        electionTimeout = "300ms";
      };
    };
    expect.units."etcd.service".has = [
      "Environment=\"ETCD_ELECTION_TIMEOUT=300\""
      "Environment=\"ETCD_HEARTBEAT_INTERVAL=30\""
    ];
  };
  "one that keeps the pool alone" = warns (member { members = { inherit (members) a; }; }) [
    "server.vip.etcd.members has a alone: when it is away, so are all addresses. With three of them, one may be away."
  ];
  "two that keep it" = warns (member { members = { inherit (members) a b; }; }) [
    "server.vip.etcd.members has 2 members, of which no more may be away than of 1, and there is one more to fail: add one, or take one out."
  ];
}
