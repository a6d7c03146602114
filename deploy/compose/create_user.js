// Run once by the image, on the empty database: a user who may use one database and nothing else.
const password = require("fs").readFileSync("/run/secrets/mongo_otf", "utf8").trim();
db.getSiblingDB("otf").createUser({
  user: "otf",
  pwd: password,
  roles: [{ role: "readWrite", db: "otf" }],
});
