# Three hosts that run the same and share a pool of addresses, which they keep in an etcd of their own: whichever address a client asks
# leads to a healthy one.
{ config, pkgs, ... }:
{
  server.vip = {
    enable = true;
    interface = "eth0";
    settings = {
      dcs-clustername = "edge";
      checker-type = "http";
      http-url = "http://127.0.0.1:8080/";
    };
    etcd.enable = true;
    etcd.members = {
      edge1 = "192.168.1.21";
      edge2 = "192.168.1.22";
      edge3 = "192.168.1.23";
    };
    # For who puts addresses into the pool from elsewhere.
    etcd.clients = [ "192.168.1.10" ];
    metrics = {
      enable = true;
      address = "0.0.0.0";
      openFirewall = true;
    };
  };

  # It stands for your proxy, or your application. It listens on all addresses, those that come later, too.
  networking.firewall.allowedTCPPorts = [ 8080 ];
  systemd.services.web = {
    description = "What the addresses lead to";
    wantedBy = [ "multi-user.target" ];
    path = [ pkgs.python3 ];
    script = ''
      echo ${config.networking.hostName} >"$RUNTIME_DIRECTORY/index.html"
      exec python3 -m http.server --directory "$RUNTIME_DIRECTORY" 8080
    '';
    serviceConfig = {
      DynamicUser = true;
      RuntimeDirectory = "web";
      Restart = "always";
    };
  };
}
