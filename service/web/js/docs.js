// Swagger UI over this server's OpenAPI; its files come from here, not from a CDN.

globalThis.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  validatorUrl: null, // the default would send the address of this server to swagger.io
});
