# The primary: PostgreSQL, Redis, and the coordinator that tells the others. What they declare is provisioned here.
{
  services.postgresql.enable = true;
  services.redis.servers."".enable = true;

  server.database.provision.openFirewall = true;

  # A disk that hangs must not look like a database that is slow: its ports are closed, and whoever depends on it is drained.
  server.database.fence = {
    enable = true;
    onFence = "drain";
  };

  # What the fleet is in: http://localhost:9877/ on this host.
  server.database.coordinator.serve.enable = true;
}
