# What can be read off a fleet's nixosConfigurations.
{ lib }:
let
  database = host: host.config.server.database or null;
  # Hosts without our module are no members.
  members = lib.filterAttrs (_: host: database host != null);
  of = primary: lib.filterAttrs (_: host: host.config.server.ioPrimaryHost == primary);
in
rec {
  # The guardians of the hosts that name `primary` as theirs, as the coordinator's --hosts wants them: "app1:9876".
  clients =
    primary: nixosConfigurations:
    lib.mapAttrsToList (
      _: host:
      let
        inherit (database host) guardian;
        address = if lib.hasInfix ":" guardian.address then "[${guardian.address}]" else guardian.address;
      in
      "${address}:${toString guardian.port}"
    ) (
      lib.filterAttrs (
        _: host: (database host).guardian.enable && host.config.networking.hostName != primary
      ) (of primary (members nixosConfigurations))
    );

  # All declarations of one kind ("postgres" or "redis"): [ { host; name; value; } ].
  declarations =
    kind: primary: nixosConfigurations:
    lib.concatLists (
      lib.mapAttrsToList (
        _: host:
        lib.mapAttrsToList (name: value: {
          host = host.config.networking.hostName;
          inherit name value;
        }) (database host).${kind}
      ) (of primary (members nixosConfigurations))
    );
}
