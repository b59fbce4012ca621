# The primary: PostgreSQL, Redis, and the coordinator that tells the others. What they declare is provisioned here.
{
  services.postgresql.enable = true;
  services.redis.servers."".enable = true;

  server.database.provision.openFirewall = true;
  # What the fleet is in: http://localhost:9877/ on this host.
  server.database.coordinator.serve.enable = true;
}
