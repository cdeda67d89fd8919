BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE api_keys (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	prefix VARCHAR(16) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	created VARCHAR(40) NOT NULL, 
	expires VARCHAR(40), 
	revoked VARCHAR(40), 
	PRIMARY KEY (id), 
	UNIQUE (hash)
);
INSERT INTO "api_keys" VALUES(1,'laptop','ih-aaaaaaaa','f12e68d459332b3a21412ba37d7f9b933b6b801b8dcd9a6af0b9b1a3c0e9bf6e','2026-01-01T00:00:00+00:00',NULL,NULL);
INSERT INTO "api_keys" VALUES(2,'gone','ih-bbbbbbbb','1030c3ca21ed7ec0964b09ad8d1101e55839a5882f0d81002b3fffcfef527f8f','2026-01-01T00:00:00+00:00','2026-06-01T00:00:00+00:00','2026-02-01T00:00:00+00:00');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	actor VARCHAR(128) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	subject VARCHAR(128) NOT NULL, 
	detail TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'2026-01-05T00:00:00+00:00','ann','promote','desk','{"release": "routing:v2", "before": "routing:v1"}');
CREATE TABLE deployments (
	name VARCHAR(64) NOT NULL, 
	release INTEGER NOT NULL, 
	previous INTEGER, 
	changed_at VARCHAR(40) NOT NULL, 
	generation INTEGER NOT NULL, 
	PRIMARY KEY (name), 
	FOREIGN KEY(release) REFERENCES releases (id), 
	FOREIGN KEY(previous) REFERENCES releases (id)
);
INSERT INTO "deployments" VALUES('desk',2,1,'2026-01-05T00:00:00+00:00',4);
INSERT INTO "deployments" VALUES('faq',4,NULL,'2026-01-06T00:00:00+00:00',1);
CREATE TABLE releases (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	artifact VARCHAR(64) NOT NULL, 
	passed BOOLEAN NOT NULL, 
	created VARCHAR(40) NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT releases_name_version UNIQUE (name, version), 
	CONSTRAINT releases_name_artifact UNIQUE (name, artifact)
);
INSERT INTO "releases" VALUES(1,'routing',1,'a555cb2a93a946d02722f235972389b6',1,'2026-01-01T00:00:00+00:00');
INSERT INTO "releases" VALUES(2,'routing',2,'ebf7e432ceeb3df21d4e3861ed005e8f',1,'2026-01-02T00:00:00+00:00');
INSERT INTO "releases" VALUES(3,'routing',3,'24856d33958dd9f86b9733b1ec209452',0,'2026-01-03T00:00:00+00:00');
INSERT INTO "releases" VALUES(4,'faq',1,'61de0e53c36a824047f2bffc92ea1029',1,'2026-01-04T00:00:00+00:00');
COMMIT;
