// Package stats holds the estimators behind every figure of this project:
// quantiles and what a sample can say about them, moments, and the burstiness
// of arrivals.
//
// # Quantiles
//
// [Quantile] interpolates linearly between order statistics, as numpy.quantile
// does by default (type 7 of Hyndman and Fan, "Sample Quantiles in Statistical
// Packages", The American Statistician 50, 1996), so that the numbers can be
// checked with the tool that most readers have at hand.
//
// A sample of n values carries the quantile p if the distribution-free
// confidence interval of that quantile, at level [Level], has both ends inside
// the sample ([QuantileInterval]; David and Nagaraja, "Order Statistics",
// section 7.1; Hahn and Meeker, "Statistical Intervals", section 5.2). Below
// that size the data bound the quantile on one side at most, and its estimate
// is some value near the maximum. [MinSamples] gives the smallest such n: 6 for
// p50, 36 for p90, 72 for p95, 368 for p99, 3,688 for p99.9.
//
// The interval takes the values for independent. Latencies of neighbouring
// requests are not, so that it is a lower bound of the uncertainty of one run;
// what differs between runs needs repeats.
package stats
