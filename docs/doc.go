// Package docs holds the documentation. Its tests hold the pages against the
// tree they describe: configurations, keys, metrics, links, files and tests.
package docs
