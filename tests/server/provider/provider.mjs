// A certified OpenID provider with the keys, clients and resources that it is given as JSON. It says "ready" and serves.
import http from "node:http";
import { Provider } from "oidc-provider";

const given = JSON.parse(process.argv[2]);
const resource = (audience, accessTokenFormat) => ({
  scope: given.scopes,
  audience,
  accessTokenFormat,
  accessTokenTTL: 23 * 3600,
});
const resources = {
  "urn:features": resource(given.audience, "jwt"),
  "urn:features:opaque": resource(given.audience, "opaque"),
  "urn:other": resource("other", "jwt"),
};
const provider = new Provider(given.issuer, {
  jwks: given.jwks,
  clients: given.clients.map(([client_id, client_secret, scope]) => ({
    client_id,
    client_secret,
    scope,
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
  })),
  scopes: given.scopes.split(" "),
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: { enabled: true, getResourceServerInfo: (_, indicator) => resources[indicator] },
  },
});
http.createServer(provider.callback()).listen(given.port, "127.0.0.1", () => console.log("ready"));
