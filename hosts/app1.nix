# A host with one service in both databases: by its name it is tied to them.
{ config, pkgs, ... }:
{
  server.database.postgres.myapp.password.owner = "myapp";
  server.database.redis.myapp.database_id = 0;

  users.users.myapp = {
    isSystemUser = true;
    group = "myapp";
  };
  users.groups.myapp = { };

  # A session that stays open in each database: what a drain must have closed before they stop.
  systemd.services.myapp = {
    description = "An application with connections to both databases";
    wantedBy = [ "multi-user.target" ];
    path = [
      pkgs.postgresql
      pkgs.redis
    ];
    environment = {
      PGHOST = config.server.database.postgres.myapp.host;
      PGUSER = config.server.database.postgres.myapp.user;
      PGDATABASE = config.server.database.postgres.myapp.database;
      PGAPPNAME = "myapp";
    };
    script = ''
      PGPASSWORD=$(cat ${config.server.database.postgres.myapp.password.path})
      export PGPASSWORD
      exec psql --no-psqlrc --set=ON_ERROR_STOP=1 --command='SELECT pg_sleep(1e9)'
    '';
    serviceConfig = {
      User = "myapp";
      Restart = "always";
      RestartSec = "1s";
      TimeoutStopSec = "20s";
    };
  };
}
