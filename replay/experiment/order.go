package experiment

import (
	"math/rand/v2"
	"slices"
)

// Order returns, for each block, the order in which its cells are played: a
// permutation of 0..cells-1 a block.
//
// Blocks come in pairs, the second the reverse of the first: after an even
// number of blocks each cell has the same mean position, so that a linear drift
// (a machine that warms up, a disk that fills) cancels. For two cells that is
// ABBA. The first block of each pair is a row of a Williams square (Williams,
// "Experimental designs balanced for the estimation of residual effects of
// treatments", Aust. J. Sci. Res. A 2, 1949): within cells blocks (2 × cells
// where cells is odd) each cell is at each position and right behind each other
// cell equally often. The seed decides which cell is which of the square, the
// order of its rows, and which block of a pair goes first; it is drawn anew for
// each square. The order of fewer blocks is the beginning of that of more.
func Order(cells, blocks int, seed uint64) [][]int {
	if cells < 1 || blocks < 1 {
		return nil
	}
	r := rand.New(rand.NewPCG(seed, orderStream))
	order := make([][]int, 0, blocks+2*cells)
	for len(order) < blocks {
		names := r.Perm(cells)
		rows := cells
		if cells%2 == 0 {
			rows = cells / 2 // the other half are the reverses of these
		}
		for _, shift := range r.Perm(rows) {
			row := make([]int, cells)
			for i := range row {
				row[i] = names[(zigzag(i, cells)+shift)%cells]
			}
			back := slices.Clone(row)
			slices.Reverse(back)
			if r.IntN(2) == 1 {
				row, back = back, row
			}
			order = append(order, row, back)
		}
	}
	return order[:blocks]
}

// orderStream keeps the draws of Order apart from others of the same seed.
const orderStream = 0x6f72646572 // "order"

// zigzag is the first row of a Williams square: 0, 1, n-1, 2, n-2, ...
func zigzag(i, n int) int {
	if i%2 == 1 {
		return (i + 1) / 2
	}
	return (n - i/2) % n
}
