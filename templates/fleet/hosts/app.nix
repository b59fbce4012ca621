# A host whose service needs the databases. By its name it is tied to them: io-guardian starts and stops it.
{ pkgs, ... }:
{
  # imports = [ ./app-hardware-configuration.nix ];   # what nixos-generate-config wrote
  system.stateVersion = "26.05";

  server.database.postgres.myapp.password.owner = "myapp";
  server.database.redis.myapp.database_id = 0;

  systemd.services.myapp = {
    description = "Put your program here";
    wantedBy = [ "multi-user.target" ]; # io-guardian takes this out: the databases' target starts it
    serviceConfig = {
      ExecStart = "${pkgs.coreutils}/bin/sleep infinity";
      User = "myapp";
      TimeoutStopSec = "40s"; # shorter than the 45 s that a drain waits
    };
  };
  users.users.myapp = {
    isSystemUser = true;
    group = "myapp";
  };
  users.groups.myapp = { };
}
