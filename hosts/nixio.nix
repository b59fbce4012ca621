# The primary: PostgreSQL, Redis, and the coordinator that tells the others. What they declare is provisioned here.
{
  services.postgresql.enable = true;
  services.redis.servers."".enable = true;

  server.database.provision.openFirewall = true;
}
