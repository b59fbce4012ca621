# What can be read off a fleet's nixosConfigurations.
{ lib }:
rec {
  # "host:port", as our programs want it: an IPv6 address has brackets.
  endpoint = host: port: "${if lib.hasInfix ":" host then "[${host}]" else host}:${toString port}";

  # What the hosts that name `primary` as theirs say of their databases, by their networking.hostName. A host without our
  # modules is no member.
  members =
    primary: nixosConfigurations:
    lib.listToAttrs (
      map (host: lib.nameValuePair host.config.networking.hostName host.config.server.database) (
        lib.filter (
          host:
          host.config ? server && host.config.server ? database && host.config.server.ioPrimaryHost == primary
        ) (lib.attrValues nixosConfigurations)
      )
    );

  # A line of the coordinator's hosts file: "app1:9876", and with a tier "app1:9876 tier=2".
  told =
    address: port: tier:
    endpoint address port + lib.optionalString (tier != null) " tier=${toString tier}";

  # The guardians that `primary` has to tell, beside its own.
  clients =
    primary: nixosConfigurations:
    lib.mapAttrsToList (_: member: told member.guardian.address member.guardian.port member.tier) (
      lib.filterAttrs (_: member: member.guardian.enable) (
        removeAttrs (members primary nixosConfigurations) [ primary ]
      )
    );

  # What a host declares of one kind ("postgres" or "redis") on its primary: [ { host; name; value; } ]. What lies on another
  # server is not the primary's.
  here =
    host: member: kind:
    lib.mapAttrsToList (name: value: { inherit host name value; }) (
      lib.filterAttrs (_: db: db.host == member.host) member.${kind}
    );

  # The same of all other hosts of the fleet.
  declarations =
    kind: primary: nixosConfigurations:
    lib.concatLists (
      lib.mapAttrsToList (host: member: here host member kind) (
        removeAttrs (members primary nixosConfigurations) [ primary ]
      )
    );
}
