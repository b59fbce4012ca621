# A host with dependents of three kinds: a service that is named like its database, one that is not, and a timer.
{ config, pkgs, ... }:
let
  database = config.server.database.redis.queue;
in
{
  server.database.redis.queue.database_id = 1;
  server.database.dependentServices = [
    "worker"
    "report.timer"
  ];

  systemd.services = {
    queue = {
      description = "A service that is named like its database";
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "${pkgs.coreutils}/bin/sleep infinity";
      serviceConfig.TimeoutStopSec = "20s";
    };
    worker = {
      description = "A service that takes its time to stop";
      wantedBy = [ "multi-user.target" ];
      script = ''
        # A stop may end its sleeps, too, and before the shell is told: that is no failure.
        trap 'sleep 1 || true; exit 0' TERM
        while true; do sleep 1 || true; done
      '';
      environment.REDIS_URL = "redis://${database.host}:${toString database.port}/${toString database.database_id}";
      serviceConfig.TimeoutStopSec = "20s";
    };
    report = {
      description = "A report, now and then";
      startAt = "*:0/10";
      serviceConfig.Type = "oneshot";
      script = "date";
    };
  };
}
