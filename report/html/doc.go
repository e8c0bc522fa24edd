// Package html shows analyses and comparisons of package report as one HTML
// file that needs nothing but itself: no network, no fonts, no images.
//
// [WriteRun] and [WriteComparison] write a page. It can be read without
// JavaScript and in print: verdict, tables and charts (SVG of internal/plot,
// each with its data as a table) are in the markup. The script of the page sorts
// tables, switches between light and dark, and draws what happened over time
// with a cursor that all charts share (uPlot, MIT, in assets).
//
// # Safety
//
// Names of runs, clients and models, and the error texts of engines, come from
// outside: html/template escapes every one. The page's content policy is
// default-src 'none' with the hashes of its own style and script, so that
// nothing that slipped through would run or load.
//
// # Size
//
// A page holds what a [report.Profile] holds: quantiles, bands and counts of
// cells. It is as large for a million requests as for ten thousand.
package html
