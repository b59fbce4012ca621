# A host with one service in both databases: by its name it is tied to them.
{ config, pkgs, ... }:
let
  postgres = config.server.database.postgres.myapp;
  redis = config.server.database.redis.myapp;
in
{
  server.database.postgres.myapp.password.owner = "myapp";
  server.database.redis.myapp.database_id = 0;

  users.users.myapp = {
    isSystemUser = true;
    group = "myapp";
  };
  users.groups.myapp = { };

  # A session that stays open in each database: what a drain must have closed before they stop. Its queries are short: only
  # between two of them does a server notice that its client has gone.
  systemd.services.myapp = {
    description = "An application with connections to both databases";
    wantedBy = [ "multi-user.target" ];
    path = [
      pkgs.postgresql
      pkgs.redis
    ];
    environment = {
      PGHOST = postgres.host;
      PGPORT = toString postgres.port;
      PGUSER = postgres.user;
      PGDATABASE = postgres.database;
      PGAPPNAME = "myapp";
    };
    script = ''
      PGPASSWORD=$(cat ${postgres.password.path})
      REDISCLI_AUTH=$(cat "$CREDENTIALS_DIRECTORY/redis")
      export PGPASSWORD REDISCLI_AUTH
      while sleep 1; do echo 'SELECT 1;'; done | psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 >/dev/null &
      redis-cli -h ${redis.host} -p ${toString redis.port} -n ${toString redis.database_id} subscribe ${redis.prefix}events >/dev/null &
      # One that has lost its database is of no use.
      wait -n
      exit 1
    '';
    # It tries until it succeeds.
    startLimitIntervalSec = 0;
    serviceConfig = {
      User = "myapp";
      LoadCredential = "redis:${config.server.database.wait.redis.passwordFile}";
      Restart = "always";
      RestartSec = "1s";
      TimeoutStopSec = "20s";
    };
  };
}
